// Rotation of channel pairs. A row's sines and cosines are computed once and turn every head of
// every turned part; the other parts of a fused projection are copied in the same pass.
#pragma once
#include <cmath>

#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

// Half as many lanes in float64: twice a register would be taken apart lane by lane.
constexpr int kWide = kLanes / 2;
typedef double wide_vec __attribute__((vector_size(8 * kWide)));
typedef int64_t wide_ivec __attribute__((vector_size(8 * kWide)));
typedef float narrow_vec __attribute__((vector_size(4 * kWide)));
typedef int32_t narrow_ivec __attribute__((vector_size(4 * kWide)));

// x = quadrant * pi / 2 + r with |r| <= pi / 4; quadrant modulo 4.
static inline void reduce(vec x, vec& r, ivec& quadrant) {
  const wide_vec magic = 0x1.8p52 - wide_vec{};  // adding it rounds to an integer, in the low bits
  narrow_vec part[2], rest[2];
  narrow_ivec turns[2];
  memcpy(part, &x, sizeof x);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const wide_vec w = __builtin_convertvector(part[i], wide_vec);
    const wide_vec shifted = w * 0.63661977236758134 + magic, n = shifted - magic;
    rest[i] = __builtin_convertvector(w - n * 1.5707963267948966 - n * 6.123233995736766e-17,
                                      narrow_vec);
    turns[i] = __builtin_convertvector((wide_ivec)shifted & 3, narrow_ivec);
  }
  memcpy(&r, rest, sizeof r);
  memcpy(&quadrant, turns, sizeof quadrant);
}

// Sine and cosine, absolute error 1e-7. Reduced in float64: positions reach thousands of radians.
static inline void sincos(vec x, vec& sine, vec& cosine) {
  vec r;
  ivec quadrant;
  reduce(x, r, quadrant);
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

  // Room for what an item needs: sines and cosines of its angles, and three rows.
  struct Turns {
    float *sines, *cosines;        // [kRows, width / 2], and a vector behind
    float *sine, *cosine, *sum;    // of one row, each repeated for both channels of its pair
  };
  bool turns(long from, long to, float sign, Turns& t) const {
    const long half = a.width / 2, all_angles = kRows * half + kLanes;
    const long row = padded(a.width) + kLanes;
    float* room = scratch(2 * all_angles + 3 * row);
    if (!room) return false;
    t = {room, room + all_angles, room + 2 * all_angles, room + 2 * all_angles + row,
         room + 2 * all_angles + 2 * row};
    // As one long vector: a row alone may fill only a part of one.
    for (long r = from; r < to; r++)
      memcpy(t.sines + (r - from) * half, a.angle + r * a.angle_row, half * sizeof(float));
    const long count = (to - from) * half;
    for (long i = 0; i < count; i += kLanes) {
      vec s, c;
      sincos(load_some(t.sines + i, (int)least(count - i, kLanes)), s, c);
      store(t.sines + i, sign * s);
      store(t.cosines + i, c);
    }
    return true;
  }
  void repeat(long row, const Turns& t) const {
    const long start = row * (a.width / 2);
    for (long d = 0; d < a.width; d += 2 * kLanes) {
      const vec c = load(t.cosines + start + d / 2), s = load(t.sines + start + d / 2);
      store(t.cosine + d, pairs::low(c));
      store(t.cosine + d + kLanes, pairs::high(c));
      store(t.sine + d, pairs::low(s) * pairs::alternating());
      store(t.sine + d + kLanes, pairs::high(s) * pairs::alternating());
    }
  }

  void copy(const T* from, T* to) const {
    for (long d = 0; d < a.width; d += kLanes) {
      const int n = (int)least(a.width - d, kLanes);
      if (n == kLanes) memcpy(to + d, from + d, kLanes * sizeof(T));
      else memcpy(to + d, from + d, n * sizeof(T));
    }
  }

  bool forward(int64_t item) const {
    const long from = item * kRows, to = least(from + kRows, a.rows);
    Turns t;
    if (!turns(from, to, 1.0f, t)) return false;
    for (long row = from; row < to; row++) {
      repeat(row - from, t);
      for (long part = 0; part < a.parts; part++)
        for (long h = 0; h < a.heads; h++) {
          const T* in = x(row, part, h);
          T* out = of(a.part[part], row, h);
          if (part >= a.turned) {
            copy(in, out);
            continue;
          }
          for (long d = 0; d < a.width; d += kLanes) {
            const int n = (int)least(a.width - d, kLanes);
            const vec v = load_some(in + d, n);
            store_some(out + d, v * load(t.cosine + d) + pairs::swap(v) * load(t.sine + d), n);
          }
        }
    }
    return true;
  }

  bool backward(int64_t item) const {
    const long from = item * kRows, to = least(from + kRows, a.rows);
    Turns t;
    if (!turns(from, to, -1.0f, t)) return false;
    for (long row = from; row < to; row++) {
      repeat(row - from, t);
      for (long d = 0; d < a.width; d += kLanes) store(t.sum + d, vec{});
      for (long part = 0; part < a.parts; part++)
        for (long h = 0; h < a.heads; h++) {
          const T* grad = of(a.part[part], row, h);
          T* dx = x(row, part, h);
          if (part >= a.turned) {
            copy(grad, dx);
            continue;
          }
          const T* out = a.d_angle ? of(a.part[a.parts + part], row, h) : nullptr;
          for (long d = 0; d < a.width; d += kLanes) {
            const int n = (int)least(a.width - d, kLanes);
            const vec g = load_some(grad + d, n), swapped = pairs::swap(g);
            store_some(dx + d, g * load(t.cosine + d) + swapped * load(t.sine + d), n);
            // Im(grad conj(out)) of a pair, its two terms in its two lanes.
            if (out) store(t.sum + d, load(t.sum + d) - swapped * load_some(out + d, n) *
                                                        pairs::alternating());
          }
        }
      if (a.d_angle)
        for (long i = 0; i < a.width / 2; i++)
          a.d_angle[row * (a.width / 2) + i] = t.sum[2 * i] + t.sum[2 * i + 1];
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
