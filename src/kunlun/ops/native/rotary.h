// Rotation of channel pairs. A row's sines and cosines are computed once and turn every head of
// every turned part; the other parts of a fused projection are copied in the same pass.
#pragma once
#include <cmath>

#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

typedef double wide_vec __attribute__((vector_size(8 * kLanes)));
typedef int64_t wide_ivec __attribute__((vector_size(8 * kLanes)));

// Sine and cosine, absolute error 1e-7. Reduced in float64: positions reach thousands of radians.
static inline void sincos(vec x, vec& sine, vec& cosine) {
  const wide_vec magic = 0x1.8p52 - wide_vec{};
  const wide_vec w = __builtin_convertvector(x, wide_vec);
  const wide_vec shifted = w * 0.63661977236758134 + magic, n = shifted - magic;
  const vec r = __builtin_convertvector(
      w - n * 1.5707963267948966 - n * 6.123233995736766e-17, vec);
  const ivec quadrant = __builtin_convertvector((wide_ivec)shifted & 3, ivec);
  const vec s = r * r;
  vec p = -1.9515295891e-4f * s + 8.3321608736e-3f;
  p = p * s - 1.6666654611e-1f;
  p = p * s * r + r;
  vec q = 2.443315711809948e-5f * s - 1.388731625493765e-3f;
  q = q * s + 4.166664568298827e-2f;
  q = q * s * s - 0.5f * s + 1.0f;
  const ivec odd = (quadrant & 1) != 0;
  sine = odd ? q : p;
  cosine = odd ? p : q;
  sine = (quadrant & 2) != 0 ? -sine : sine;
  cosine = ((quadrant + 1) & 2) != 0 ? -cosine : cosine;
  const ivec near = (ivec)((x < 0x1p28f) & (x > -0x1p28f));
  int64_t halves[sizeof(ivec) / 8], every = -1;
  memcpy(halves, &near, sizeof near);
  for (int64_t half : halves) every &= half;
  if (every == -1) return;
  for (int e = 0; e < kLanes; e++)
    if (!near[e]) {  // NaN too; nothing a model computes
      sine[e] = (float)std::sin((double)x[e]);
      cosine[e] = (float)std::cos((double)x[e]);
    }
}

template <int... E>
struct Pairs {
#if defined(__clang__)
  static inline vec swap(vec x) { return __builtin_shufflevector(x, x, (E ^ 1)...); }
  static inline vec low(vec x) { return __builtin_shufflevector(x, x, (E / 2)...); }
  static inline vec high(vec x) { return __builtin_shufflevector(x, x, (E / 2 + kLanes / 2)...); }
#else
  static inline vec swap(vec x) { return __builtin_shuffle(x, ivec{(E ^ 1)...}); }
  static inline vec low(vec x) { return __builtin_shuffle(x, ivec{(E / 2)...}); }
  static inline vec high(vec x) { return __builtin_shuffle(x, ivec{(E / 2 + kLanes / 2)...}); }
#endif
  static inline vec alternating() { return vec{(E & 1 ? 1.0f : -1.0f)...}; }
};
template <int N, int... E>
struct CountPairs : CountPairs<N - 1, N - 1, E...> {};
template <int... E>
struct CountPairs<0, E...> {
  typedef Pairs<E...> pairs;
};
typedef CountPairs<kLanes>::pairs pairs;

template <class T>
struct Rotary {
  const RotaryArgs& a;

  static constexpr long kRows = 64;  // of an item

  T* x(long row, long part, long head) const {
    return static_cast<T*>(a.x.data) + row * a.x.row + part * a.x_part + head * a.x.head;
  }
  T* of(const Tensor3& t, long row, long head) const {
    return static_cast<T*>(t.data) + row * t.row + head * t.head;
  }

  // cos and -+sin of a row's angles, each repeated for both channels of its pair.
  void turns(long row, float sign, float* cosine, float* sine) const {
    const float* angle = a.angle + row * a.angle_row;
    for (long i = 0; i < a.width / 2; i += kLanes, cosine += 2 * kLanes, sine += 2 * kLanes) {
      vec c, s;
      sincos(load_some(angle + i, (int)least(a.width / 2 - i, kLanes)), s, c);
      store(cosine, pairs::low(c));
      store(cosine + kLanes, pairs::high(c));
      s *= sign;
      store(sine, pairs::low(s) * pairs::alternating());
      store(sine + kLanes, pairs::high(s) * pairs::alternating());
    }
  }
  float* room() const { return scratch(3 * (padded(a.width) + kLanes)); }

  void copy(const T* from, T* to) const {
    for (long d = 0; d < a.width; d += kLanes) {
      const int n = (int)least(a.width - d, kLanes);
      if (n == kLanes) memcpy(to + d, from + d, kLanes * sizeof(T));
      else memcpy(to + d, from + d, n * sizeof(T));
    }
  }

  bool forward(int64_t item) const {
    float* cosine = room();
    if (!cosine) return false;
    float* sine = cosine + padded(a.width) + kLanes;
    for (long row = item * kRows; row < least(item * kRows + kRows, a.rows); row++) {
      turns(row, 1.0f, cosine, sine);
      for (long part = 0; part < a.parts; part++)
        for (long h = 0; h < a.heads; h++) {
          const T* from = x(row, part, h);
          T* to = of(a.part[part], row, h);
          if (part >= a.turned) {
            copy(from, to);
            continue;
          }
          for (long d = 0; d < a.width; d += kLanes) {
            const int n = (int)least(a.width - d, kLanes);
            const vec v = load_some(from + d, n);
            store_some(to + d, v * load(cosine + d) + pairs::swap(v) * load(sine + d), n);
          }
        }
    }
    return true;
  }

  bool backward(int64_t item) const {
    float* cosine = room();
    if (!cosine) return false;
    float *sine = cosine + padded(a.width) + kLanes, *sum = sine + padded(a.width) + kLanes;
    for (long row = item * kRows; row < least(item * kRows + kRows, a.rows); row++) {
      turns(row, -1.0f, cosine, sine);
      for (long d = 0; d < a.width; d += kLanes) store(sum + d, vec{});
      for (long part = 0; part < a.parts; part++)
        for (long h = 0; h < a.heads; h++) {
          const T* grad = of(a.part[part], row, h);
          T* to = x(row, part, h);
          if (part >= a.turned) {
            copy(grad, to);
            continue;
          }
          const T* out = a.d_angle ? of(a.part[a.parts + part], row, h) : nullptr;
          for (long d = 0; d < a.width; d += kLanes) {
            const int n = (int)least(a.width - d, kLanes);
            const vec g = load_some(grad + d, n), swapped = pairs::swap(g);
            store_some(to + d, g * load(cosine + d) + swapped * load(sine + d), n);
            // Im(grad conj(out)) of a pair, its two terms in its two lanes.
            if (out) store(sum + d, load(sum + d) - swapped * load_some(out + d, n) *
                                                        pairs::alternating());
          }
        }
      if (a.d_angle)
        for (long i = 0; i < a.width / 2; i++)
          a.d_angle[row * (a.width / 2) + i] = sum[2 * i] + sum[2 * i + 1];
    }
    return true;
  }

  static Status run(const RotaryArgs* a, bool backward) {
    const Rotary c = {*a};
    const auto body = backward ? call<Rotary, &Rotary::backward> : call<Rotary, &Rotary::forward>;
    return run_items((a->rows + kRows - 1) / kRows, a->threads, body, &c) ? kDone : kNoMemory;
  }
};

static Status rotary(const RotaryArgs* a, bool backward) {
  return a->bf16 ? Rotary<bfloat16>::run(a, backward) : Rotary<float>::run(a, backward);
}
static Status rotary_forward(const RotaryArgs* a) { return rotary(a, false); }
static Status rotary_backward(const RotaryArgs* a) { return rotary(a, true); }

}  // namespace KUNLUN_ISA
