// The activations of kunlun.ops.activations: value(x), and both(x, slope) with the derivative.
//
// Order as in _ORDER of kunlun.ops.native. All are 0 at 0, so padded lanes stay silent.
#pragma once
#include "vector.h"

namespace KUNLUN_ISA {

struct Raw {
  static inline vec value(vec x) { return x; }
  static inline vec both(vec x, vec& slope) {
    slope = all(1.0f);
    return x;
  }
};

struct Gelu {  // x Phi(x)
  static inline vec phi(vec x) { return 0.5f + 0.5f * erf(0.70710678f * x); }
  static inline vec value(vec x) { return x * phi(x); }
  static inline vec both(vec x, vec& slope) {
    vec p = phi(x);
    vec c = at_most(at_least(x, all(-13.0f)), all(13.0f));  // the density is 0 beyond
    slope = p + 0.39894228f * c * exp2(-0.72134752f * c * c);
    return x * p;
  }
};

struct GeluApprox {  // x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)); the gate is 0 or 1 beyond 9,
                     // where the exponent is 96
  static constexpr float kC = 1.59576912f, kA = 0.044715f, kLog2E = 1.44269504f;
  static inline vec low(vec x) { return at_least(x, all(-9.0f)); }  // below: as good as 0 already
  static inline vec gate(vec c, vec square) {
    return sigmoid2_of_minus(c * (-kLog2E * kC - kLog2E * kC * kA * square));
  }
  static inline vec value(vec x) {
    x = low(x);
    vec c = at_most(x, all(9.0f));
    return x * gate(c, c * c);
  }
  static inline vec both(vec x, vec& slope) {
    x = low(x);
    vec c = at_most(x, all(9.0f)), s = c * c, g = gate(c, s);
    slope = g + c * (g - g * g) * (kC + 3.0f * kC * kA * s);
    return x * g;
  }
};

struct Silu {  // x sigmoid(x)
  static inline vec low(vec x) { return at_least(x, all(-86.0f)); }
  static inline vec value(vec x) {
    x = low(x);
    return x * sigmoid2_of_minus(-1.44269504f * at_most(x, all(86.0f)));
  }
  static inline vec both(vec x, vec& slope) {
    x = low(x);
    vec c = at_most(x, all(86.0f)), g = sigmoid2_of_minus(-1.44269504f * c);
    slope = g + c * (g - g * g);
    return x * g;
  }
};

struct Relu {
  static inline vec value(vec x) { return at_least(x, vec{}); }
  static inline vec both(vec x, vec& slope) {
    slope = x > 0.0f ? all(1.0f) : vec{};  // 0 at 0, as torch
    return value(x);
  }
};

struct ReluSquare {
  static inline vec value(vec x) {
    x = at_least(x, vec{});
    return x * x;
  }
  static inline vec both(vec x, vec& slope) {
    x = at_least(x, vec{});
    slope = 2.0f * x;
    return x * x;
  }
};

struct LeakyRelu {
  static inline vec value(vec x) { return x > 0.0f ? x : 0.01f * x; }
  static inline vec both(vec x, vec& slope) {
    slope = x > 0.0f ? all(1.0f) : all(0.01f);
    return x * slope;
  }
};

struct Hardswish {  // x clip(x + 3, 0, 6) / 6
  static inline vec value(vec x) {
    return x * (at_most(at_least(x + 3.0f, vec{}), all(6.0f)) * (1.0f / 6.0f));
  }
  static inline vec both(vec x, vec& slope) {
    vec middle = x * (1.0f / 3.0f) + 0.5f;
    slope = x <= -3.0f ? vec{} : (x < 3.0f ? middle : all(1.0f));
    return value(x);
  }
};

// x[0 .. n) becomes act(x); n in whole vectors.
typedef void (*Activate)(float* x, long n);
// The same, and grad is multiplied by act'(x).
typedef void (*ActivateBoth)(float* x, float* grad, long n);

template <class A>
static void activate(float* x, long n) {
  for (long i = 0; i < n; i += kLanes) store(x + i, A::value(load(x + i)));
}

template <class A>
static void activate_both(float* x, float* grad, long n) {
  for (long i = 0; i < n; i += kLanes) {
    vec slope, y = A::both(load(x + i), slope);
    store(x + i, y);
    store(grad + i, slope * load(grad + i));
  }
}

static const Activate kActivate[] = {
    activate<Raw>,  activate<Gelu>,       activate<GeluApprox>, activate<Silu>,
    activate<Relu>, activate<ReluSquare>, activate<LeakyRelu>,  activate<Hardswish>};
static const ActivateBoth kActivateBoth[] = {
    activate_both<Raw>,        activate_both<Gelu>,      activate_both<GeluApprox>,
    activate_both<Silu>,       activate_both<Relu>,      activate_both<ReluSquare>,
    activate_both<LeakyRelu>,  activate_both<Hardswish>};

}  // namespace KUNLUN_ISA
