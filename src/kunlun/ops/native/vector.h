// Vectors of the instruction set this is compiled for, and the functions the operators need.
//
// Everything is static inside the namespace of that instruction set: two of them share a library,
// and an inline function the linker merged would run instructions the machine may not have.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace KUNLUN_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // with two vectors a row: 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kTileRows = 12;
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 4;
#endif

typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t ivec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t uvec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t half_vec __attribute__((vector_size(2 * kLanes)));
typedef vec unaligned_vec __attribute__((aligned(4), may_alias));

typedef uint16_t bfloat16;

static inline vec all(float x) { return x - vec{}; }
static inline vec load(const float* p) { return *reinterpret_cast<const unaligned_vec*>(p); }
static inline void store(float* p, vec x) { *reinterpret_cast<unaligned_vec*>(p) = x; }

// Around the caches, whole lines of 64 bytes one vector after another; and what has to follow
// before another thread may read them.
#if defined(__AVX512F__)
static inline void store_around(float* p, vec x) { _mm512_stream_ps(p, (__m512)x); }
static inline void end_around() { _mm_sfence(); }
#elif defined(__AVX2__)
static inline void store_around(float* p, vec x) { _mm256_stream_ps(p, (__m256)x); }
static inline void end_around() { _mm_sfence(); }
#else
static inline void store_around(float* p, vec x) { store(p, x); }
static inline void end_around() {}
#endif

static inline vec widen(half_vec h) { return (vec)(__builtin_convertvector(h, uvec) << 16); }

static inline half_vec narrow(vec x) {
  uvec bits = (uvec)x;
  uvec rounded = bits + 0x7fff + ((bits >> 16) & 1);
  rounded = x == x ? rounded : (bits | 0x400000);  // rounding up must not turn NaN into infinity
  return __builtin_convertvector(rounded >> 16, half_vec);
}

static inline vec load(const bfloat16* p) {
  half_vec h;
  memcpy(&h, p, sizeof h);
  return widen(h);
}
static inline void store(bfloat16* p, vec x) {
  half_vec h = narrow(x);
  memcpy(p, &h, sizeof h);
}

// The first n elements, zeros behind them; n may be 0 or a whole vector.
template <class T>
static inline vec load_some(const T* p, int n) {
  if (n >= kLanes) return load(p);
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(T) == 4) return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  else return widen((half_vec)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
#else
  T part[kLanes] = {};
  for (int i = 0; i < n; i++) part[i] = p[i];
  return load(part);
#endif
}
template <class T>
static inline void store_some(T* p, vec x, int n) {
  if (n >= kLanes) return store(p, x);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
    return;
  }
#endif
  T part[kLanes];
  store(part, x);
  for (int i = 0; i < n; i++) p[i] = part[i];
}

// A NaN in x stays. The instructions return their second operand if either is NaN.
#if defined(__AVX512F__)
static inline vec at_least(vec x, vec low) { return (vec)_mm512_max_ps((__m512)low, (__m512)x); }
static inline vec at_most(vec x, vec high) { return (vec)_mm512_min_ps((__m512)high, (__m512)x); }
#else
static inline vec at_least(vec x, vec low) { return x < low ? low : x; }
static inline vec at_most(vec x, vec high) { return x > high ? high : x; }
#endif

static inline vec reciprocal(vec x) {  // of 1 <= x < 2^126
#if defined(__AVX512F__)
  vec r = (vec)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)x);
  return r + r * (1.0f - x * r);
#elif defined(__AVX2__)
  vec r = (vec)_mm256_rcp_ps((__m256)x);  // 12 bits, the step doubles them
  return r + r * (1.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// 2^x of -126 <= x < 127, relative error 1e-7; a NaN stays one. No number of use, but no fault,
// down to -127.
static inline vec exp2_near(vec x) {
  const vec magic = all(0x1.8p23f);  // adding it rounds to an integer, in the low bits
  vec top = x + magic, whole = top - magic, f = x - whole;
  vec p = 0.001327647129073739f * f + 0.009675540961325169f;
  p = p * f + 0.05550713092088699f;
  p = p * f + 0.24022120237350464f;
  p = p * f + 0.6931469440460205f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (vec)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)whole);
#else
  // As a product, not by adding to the exponent: a NaN stays one.
  return p * (vec)(((ivec)top - 0x4B400000 + 127) << 23);
#endif
}

// The same of any x < 127; below -126 it is 0 (AVX-512: as small as floats go).
static inline vec exp2(vec x) {
#if defined(__AVX512F__)
  return exp2_near(x);
#else
  vec y = exp2_near(at_least(x, all(-127.0f)));
  return x < -126.0f ? vec{} : y;
#endif
}

// log2 of a positive normal number, absolute error 1e-7.
static inline vec log2(vec x) {
  ivec bits = (ivec)x;
  ivec exponent = (bits - 0x3f3504f3) >> 23;  // so that the rest lies in [sqrt(1/2), sqrt(2))
  vec rest = (vec)(bits - (exponent << 23));
  vec t = (rest - 1.0f) / (rest + 1.0f);
  vec s = t * t;
  vec p = 0.32059f * s + 0.41219857f;
  p = p * s + 0.57707804f;
  p = p * s + 0.96179670f;
  p = p * s + 2.88539008f;
  return __builtin_convertvector(exponent, vec) + t * p;
}

// 1 / (1 + 2^x), for |x| <= 126: sigmoid(-x log 2).
static inline vec sigmoid2_of_minus(vec x) { return reciprocal(1.0f + exp2_near(x)); }

static inline vec erf(vec x) {  // odd over even polynomial, absolute error 1e-7
  x = at_most(at_least(x, all(-4.0f)), all(4.0f));
  vec s = x * x;
  vec p = -2.72614225801306e-10f * s + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;
  // The denominator with its sign turned, and scaled into what reciprocal takes.
  vec q = 1.45660718464996e-03f * s + 2.13374055278905e-02f;
  q = q * s + 1.68282697438203e-01f;
  q = q * s + 7.37332916720468e-01f;
  q = q * s + 1.42647390514189f;
  return x * p * (-100.0f * reciprocal(q));
}

// Of all lanes.
static inline float sum_of(vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#elif defined(__AVX2__)
  __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
  float part[kLanes];
  store(part, x);
  for (int step = kLanes / 2; step; step /= 2)
    for (int e = 0; e < step; e++) part[e] += part[e + step];
  return part[0];
#endif
}

// Lane e of the rows i and i + H after exchanging the off-diagonal H x H blocks.
template <int H, int... E>
static inline void exchange(vec& a, vec& b) {
#if defined(__clang__)
  vec top = __builtin_shufflevector(a, b, (E & H ? kLanes + E - H : E)...);
  b = __builtin_shufflevector(a, b, (E & H ? kLanes + E : E + H)...);
#else  // GCC has the other only from 12 on
  vec top = __builtin_shuffle(a, b, ivec{(E & H ? kLanes + E - H : E)...});
  b = __builtin_shuffle(a, b, ivec{(E & H ? kLanes + E : E + H)...});
#endif
  a = top;
}
template <int H, int... E>
static inline void exchange_all(vec* m) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if (!(i & H)) exchange<H, E...>(m[i], m[i + H]);
}
template <int... E>
struct Lanes {
  static inline void transpose(vec* m) {
    if constexpr (kLanes > 8) exchange_all<8, E...>(m);
    if constexpr (kLanes > 4) exchange_all<4, E...>(m);
    exchange_all<2, E...>(m);
    exchange_all<1, E...>(m);
  }
};
template <int N, int... E>
struct Count : Count<N - 1, N - 1, E...> {};
template <int... E>
struct Count<0, E...> {
  typedef Lanes<E...> lanes;
};
// A kLanes x kLanes matrix, in place.
static inline void transpose(vec* m) { Count<kLanes>::lanes::transpose(m); }

}  // namespace KUNLUN_ISA
