// Activations whose results will be rounded to bfloat16: tables of cubic pieces instead of exp and
// erf, at a third of their cost. Absolute errors are below 1e-5, in the slope below 3e-5, and 0
// stays 0.
//
// x gate(x) of a gate with gate(-x) = 1 - gate(x) is max(x, 0) - rest(|x|), and its derivative is
// 1/2 + sign(x) tilt(|x|); rest falls to 0 and tilt comes to 1/2.
#pragma once
#include <cmath>

#include "activations.h"

namespace KUNLUN_ISA {

struct Normal {  // of Gelu
  static constexpr double kLimit = 5.5;
  static double outside(double a) { return 0.5 * std::erfc(a * M_SQRT1_2); }  // gate(-a)
  static double density(double a) { return std::exp(-0.5 * a * a) * 0.5 * M_2_SQRTPI * M_SQRT1_2; }
};
struct Logistic {  // of Silu
  static constexpr double kLimit = 17.0;
  static double outside(double a) { return 1.0 / (1.0 + std::exp(a)); }
  static double density(double a) { return outside(a) * (1.0 - outside(a)); }
};
struct LogisticOfCubic {  // of GeluApprox
  static constexpr double kLimit = 5.5, kC = 1.5957691216057308, kA = 0.044715;
  static double outside(double a) { return Logistic::outside(kC * (a + kA * a * a * a)); }
  static double density(double a) {
    return Logistic::density(kC * (a + kA * a * a * a)) * kC * (1.0 + 3.0 * kA * a * a);
  }
};

// A function of 0 <= a <= limit by cubics in a, one each around i * limit / 31.
struct Pieces {
  alignas(64) float c[4][32];

  template <class F>
  Pieces(double limit, double last, F f) {
    const double width = limit / 31;
    for (int i = 0; i < 31; i++) {
      double node[4], slope[4];  // Newton's interpolation at Chebyshev's nodes
      for (int j = 0; j < 4; j++) {
        node[j] = (i + 0.5 * std::cos((2 * j + 1) * M_PI / 8)) * width;
        slope[j] = f(std::fabs(node[j]));
        if (i == 0) node[j] = j ? (0.5 * j / 3) * width : 0.0, slope[j] = f(node[j]);
      }
      for (int level = 1; level < 4; level++)
        for (int j = 3; j >= level; j--)
          slope[j] = (slope[j] - slope[j - 1]) / (node[j] - node[j - level]);
      double power[4] = {slope[3], 0, 0, 0};
      for (int j = 2; j >= 0; j--) {
        for (int k = 3; k > 0; k--) power[k] = power[k - 1] - node[j] * power[k];
        power[0] = slope[j] - node[j] * power[0];
      }
      for (int k = 0; k < 4; k++) c[k][i] = (float)power[k];
    }
    for (int k = 0; k < 4; k++) c[k][31] = k ? 0.0f : (float)last;
  }
};

struct Lookup {  // a table in registers
  __m512 low[4], high[4];
  explicit Lookup(const Pieces& p) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
      low[k] = _mm512_load_ps(p.c[k]), high[k] = _mm512_load_ps(p.c[k] + 16);
  }
  vec pick(int k, ivec i) const {
    return (vec)_mm512_permutex2var_ps(low[k], (__m512i)i, high[k]);
  }
  vec at(vec a, ivec i) const {
    vec p = pick(3, i) * a + pick(2, i);
    p = p * a + pick(1, i);
    return p * a + pick(0, i);
  }
};

template <class Gate>
struct Piecewise {
  struct Tables {
    Pieces rest, tilt;
    Tables()
        : rest(Gate::kLimit, 0.0, [](double a) { return -a * Gate::outside(a); }),
          tilt(Gate::kLimit, 0.5,
               [](double a) { return 0.5 - Gate::outside(a) + a * Gate::density(a); }) {}
  };
  static const Tables& tables() {
    static const Tables made;
    return made;
  }
  const Lookup rest{tables().rest}, tilt{tables().tilt};

  static vec magnitude(vec x) {
    return at_most((vec)((ivec)x & 0x7fffffff), all((float)Gate::kLimit));
  }
  // The whole number nearest to a * 31 / limit, in the low bits.
  static ivec piece(vec a) { return (ivec)(a * (float)(31.0 / Gate::kLimit) + 0x1.8p23f); }

  vec value(vec x) const {
    const vec a = magnitude(x);
    return at_least(x, vec{}) + rest.at(a, piece(a));
  }
  vec both(vec x, vec& slope) const {
    const vec a = magnitude(x);
    const ivec i = piece(a);
    slope = 0.5f + (vec)((ivec)tilt.at(a, i) ^ ((ivec)x & (int32_t)0x80000000));
    return at_least(x, vec{}) + rest.at(a, i);
  }
};

// The activation to use where results are rounded to bfloat16.
template <class A>
struct Coarse {
  typedef A type;
};
template <>
struct Coarse<Gelu> {
  typedef Piecewise<Normal> type;
};
template <>
struct Coarse<GeluApprox> {
  typedef Piecewise<LogisticOfCubic> type;
};
template <>
struct Coarse<Silu> {
  typedef Piecewise<Logistic> type;
};

}  // namespace KUNLUN_ISA
