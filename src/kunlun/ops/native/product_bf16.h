// Products of bfloat16 matrices summed in float32: on AMX tiles, or by vdpbf16ps on vectors.
//
// Both instructions take depth in pairs and round nothing before the sum. A left factor lies in
// rows, zero-padded to whole steps of kDepth; that of sums over rows, further down, elsewhere. A
// right factor lies in panels of 16 columns with the pairs side by side:
// [columns / 16][depth / 2][16][2], padded in the same way. Rows of a result come in whole bands of
// kBand; what the left factor holds in rows past its last goes nowhere else.
#pragma once
#include "product.h"

namespace KUNLUN_ISA {

constexpr long kDepth = 32;  // one AMX tile row: 16 pairs
constexpr long kBand = 16;   // rows of an AMX tile

static inline long up(long n, long step) { return (n + step - 1) / step * step; }

struct Bf16Left {  // element (m, k) at p[m * row + k]
  const bfloat16* p;
  long row;
};
struct Bf16Right {  // panel n at p + n * panel, its pair k at 32 * k
  const bfloat16* p;
  long panel;
};

#if defined(__AMX_BF16__)

// Every tile whole: 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static const TileConfig kTiles;
struct TileUse {  // while one lives, this thread's tiles are configured
  TileUse() { _tile_loadconfig(&kTiles); }
  ~TileUse() { _tile_release(); }
};

// c [16 M, 16 N] = a b, or += if `add`.
template <int M, int N>
static inline void tiles(Bf16Left a, Bf16Right b, long depth, float* c, long row, bool add) {
  asm volatile("" ::: "memory");  // tile loads read what was stored; GCC is not told
  const long left = 2 * a.row, out = 4 * row;
  if (add) {
    _tile_loadd(0, c, out);
    if constexpr (N > 1) _tile_loadd(1, c + 16, out);
    if constexpr (M > 1) _tile_loadd(2, c + 16 * row, out);
    if constexpr (M > 1 && N > 1) _tile_loadd(3, c + 16 * row + 16, out);
  } else {
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (M > 1) _tile_zero(2);
    if constexpr (M > 1 && N > 1) _tile_zero(3);
  }
  for (long k = 0; k < depth; k += kDepth) {
    _tile_loadd(6, b.p + 16 * k, 64);
    _tile_loadd(4, a.p + k, left);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (N > 1) {
      _tile_loadd(7, b.p + b.panel + 16 * k, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (M > 1) {
      _tile_loadd(5, a.p + 16 * a.row + k, left);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (N > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, out);
  if constexpr (N > 1) _tile_stored(1, c + 16, out);
  if constexpr (M > 1) _tile_stored(2, c + 16 * row, out);
  if constexpr (M > 1 && N > 1) _tile_stored(3, c + 16 * row + 16, out);
}

// How often a product of these sizes asks for what comes next.
static inline long products_of(long rows, long panels) {
  return (rows + 2 * kBand - 1) / (2 * kBand) * ((panels + 1) / 2);
}

// c [rows, 16 panels] = a b, or += if `add`.
static __attribute__((noinline)) void multiply(long rows, long panels, long depth, Bf16Left a,
                                               Bf16Right b, float* c, long row, bool add,
                                               Ahead& ahead) {
  for (long i = 0; i < rows; i += 2 * kBand) {
    const Bf16Left part = {a.p + i * a.row, a.row};
    float* to = c + i * row;
    const bool tall = rows - i > kBand;
    for (long n = 0; n < panels; n += 2, to += 32) {
      const Bf16Right some = {b.p + n * b.panel, b.panel};
      ahead.ask();
      if (tall && n + 1 < panels) tiles<2, 2>(part, some, depth, to, row, add);
      else if (tall) tiles<2, 1>(part, some, depth, to, row, add);
      else if (n + 1 < panels) tiles<1, 2>(part, some, depth, to, row, add);
      else tiles<1, 1>(part, some, depth, to, row, add);
    }
  }
}

#else

struct TileUse {
  ~TileUse() {}  // not trivial, as the other
};

// Turned: the left factor lies in a panel of a right one, its pair k, k + 1 of row m at
// p[16 k + 2 m].
template <int M, int V, bool Turned>
static inline void pair_tile(Bf16Left a, Bf16Right b, long depth, float* c, long row, bool add) {
  __m512 sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[m][v] = add ? (__m512)load(c + m * row + v * 16) : __m512{};
  for (long k = 0; k < depth; k += 2) {
    __m512bh right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_loadu_si512(b.p + v * b.panel + 16 * k);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      int32_t pair;
      memcpy(&pair, Turned ? a.p + 16 * k + 2 * m : a.p + m * a.row + k, 4);
      const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[m][v] = _mm512_dpbf16_ps(sum[m][v], right[v], left);
    }
  }
  asm("" : "+r"(c), "+r"(row));  // as in product.h
#pragma GCC unroll 16
  for (int m = 0; m < M; m++, c += row)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) store(c + v * 16, (vec)sum[m][v]);
}

template <int V, bool Turned, int M>
static inline void pair_tile_of(long rows, Bf16Left a, Bf16Right b, long depth, float* c, long row,
                                bool add) {
  if constexpr (M > 0) {
    if (rows == M) return pair_tile<M, V, Turned>(a, b, depth, c, row, add);
    return pair_tile_of<V, Turned, M - 1>(rows, a, b, depth, c, row, add);
  }
}

template <int V>
static __attribute__((noinline)) void pair_column(long rows, Bf16Left a, Bf16Right b, long depth,
                                                  float* c, long row, bool add, Ahead& ahead) {
  const long blocks = (rows + kTileRows - 1) / kTileRows, height = rows / blocks;
  const long taller = rows - blocks * height;  // so many have a row more
  for (long i = 0; i < blocks; i++) {
    const long here = height + (i < taller);
    ahead.ask();
    pair_tile_of<V, false, kTileRows>(here, a, b, depth, c, row, add);
    a.p += here * a.row, c += here * row;
  }
}

static inline long products_of(long rows, long panels) { return tiles_of(rows, panels); }

// c [rows, 16 panels] = a b, or += if `add`; at least one row.
static inline void multiply(long rows, long panels, long depth, Bf16Left a, Bf16Right b, float* c,
                            long row, bool add, Ahead& ahead) {
  for (; panels >= 2; panels -= 2, b.p += 2 * b.panel, c += 32)
    pair_column<2>(rows, a, b, depth, c, row, add, ahead);
  if (panels) pair_column<1>(rows, a, b, depth, c, row, add, ahead);
}

#endif

// The first n of 32 elements, zeros behind them; n may be 0 or less, or more than 32.
static inline __m512i load_half(const bfloat16* p, long n) {
  if (n >= 32) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi16(n <= 0 ? 0 : (__mmask32)((1u << n) - 1), p);
}

// Pairs (a[i], b[i]): those of the first 16 elements, and of the other 16.
static inline void pair_up(__m512i& a, __m512i& b) {
  alignas(64) static const uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,
                                                37, 6, 38, 7, 39, 8,  40, 9,  41, 10, 42,
                                                11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), sixteen = _mm512_set1_epi16(16);
  const __m512i first = _mm512_permutex2var_epi16(a, low, b);
  b = _mm512_permutex2var_epi16(a, _mm512_add_epi16(low, sixteen), b);
  a = first;
}

// Rows where they are if a product can take them, or else in `buffer`
// [up(rows, kBand), up(width, kDepth)]. `there` rows can be read: those behind the last one meant
// only make rows of a result that nobody reads.
static inline Bf16Left left_rows(const bfloat16* from, long stride, long rows, long there,
                                 long width, bfloat16* buffer) {
  const long size = up(width, kDepth), tall = up(rows, kBand);
  if (size == width && tall <= there) return {from, stride};
  for (long r = 0; r < tall; r++)
    for (long d = 0; d < size; d += 32)
      _mm512_storeu_si512(buffer + r * size + d,
                          r < rows ? load_half(from + r * stride + d, width - d) : __m512i{});
  return {buffer, size};
}

// Rows transposed into a right factor: row r is column r, the depth is the width. Columns come in
// whole twos of panels.
static __attribute__((noinline)) void columns_of(const bfloat16* from, long stride, long rows,
                                                 long width, bfloat16* to) {
  const long size = up(width, kDepth);
  for (long r = 0; r < up(rows, 32); r += 16, to += 16 * size)
    for (long d = 0; d < size; d += 32) {
      vec block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        const bfloat16* p = from + (r + i) * stride + d;
        block[i] = (vec)(r + i < rows ? load_half(p, width - d) : __m512i{});
      }
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) store((float*)(to + 16 * d + 32 * i), block[i]);
    }
}

// Calls f(i, pairs of channels d .. d + 15, pairs of the next 16) for the row pairs from r + 2 i,
// of zero-padded rows.
template <class F>
static inline void row_pairs(const bfloat16* from, long stride, long rows, long r, long width,
                             long d, F f) {
  if (rows - r >= 32 && width - d >= 32) {
    from += r * stride + d;
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      __m512i a = _mm512_loadu_si512(from + 2 * i * stride);
      __m512i b = _mm512_loadu_si512(from + (2 * i + 1) * stride);
      pair_up(a, b);
      f(i, a, b);
    }
    return;
  }
  for (int i = 0; i < 16; i++) {
    const bfloat16* p = from + (r + 2 * i) * stride + d;
    __m512i a = r + 2 * i < rows ? load_half(p, width - d) : __m512i{};
    __m512i b = r + 2 * i + 1 < rows ? load_half(p + stride, width - d) : __m512i{};
    pair_up(a, b);
    f(i, a, b);
  }
}

// Rows as a right factor: the depth is their number, channel d is column d.
static __attribute__((noinline)) void paired_rows(const bfloat16* from, long stride, long rows,
                                                  long width, bfloat16* to) {
  const long panel = 16 * up(rows, kDepth);
  for (long d = 0; d < width; d += 32)
    for (long r = 0; r < rows; r += 32)
      row_pairs(from, stride, rows, r, width, d, [&](int i, __m512i a, __m512i b) {
        bfloat16* corner = to + d / 16 * panel + 16 * r + 32 * i;
        _mm512_store_si512(corner, a);
        if (d + 16 < width) _mm512_store_si512(corner + panel, b);
      });
}

// Two vectors rounded side by side; NaN stays, what is smaller than any normal number becomes 0.
static inline __m512i rounded(vec low, vec high) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

// Padded rows of float32 into the tensor.
static inline void write_half(const float* from, long row, long rows, long width, float factor,
                              bfloat16* to, long stride) {
  for (long r = 0; r < rows; r++)
    for (long d = 0; d < width; d += 32) {
      const float* p = from + r * row + d;
      const long n = width - d;
      const __m512i x = rounded(factor * load(p), n > 16 ? factor * load(p + 16) : vec{});
      if (n >= 32) _mm512_storeu_si512(to + r * stride + d, x);
      else _mm512_mask_storeu_epi16(to + r * stride + d, (__mmask32)((1u << n) - 1), x);
    }
}

// Gradients of k and v are sums over rows: scores^T x, of x and of scores that lie in pairs of rows
// as a right factor does. Tiles take x^T scores, since it costs more to turn scores than x, and the
// sums grow turned; vectors take scores from where they are.
#if defined(__AMX_BF16__)

// Rows as `sum_rows` takes them: turned into a left factor [up(width, kBand), up(rows, kDepth)].
static __attribute__((noinline)) void rows_to_sum(const bfloat16* from, long stride, long rows,
                                                  long width, bfloat16* to) {
  const long size = up(rows, kDepth);
  for (long d = 0; d < width; d += 32)
    for (long r = 0; r < rows; r += 32) {
      vec first[16], second[16];
      row_pairs(from, stride, rows, r, width, d, [&](int i, __m512i a, __m512i b) {
        first[i] = (vec)a;
        second[i] = (vec)b;
      });
      transpose(first);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) store((float*)(to + (d + i) * size + r), first[i]);
      if (d + 16 >= width) continue;
      transpose(second);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) store((float*)(to + (d + 16 + i) * size + r), second[i]);
    }
}

// Into the tensor, from sums[d * row + r] for channel d of key r.
static __attribute__((noinline)) void write_sums(const float* sums, long row, long rows, long width,
                                                 float factor, bfloat16* to, long stride) {
  alignas(64) float lines[16 * 32];  // of whole cache lines once rounded
  for (long r = 0; r < rows; r += 16)
    for (long d = 0; d < width; d += 32) {
      for (long e = 0; e < least(32, width - d); e += 16) {
        vec block[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) block[i] = load(sums + (d + e + i) * row + r);
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) store(lines + 32 * i + e, block[i]);
      }
      write_half(lines, 32, least(16, rows - r), least(32, width - d), factor,
                 to + r * stride + d, stride);
    }
}

// Sums of the keys from `key` on = scores^T x, or += if `add`; keys in all: all_columns.
static inline void sum_rows(const bfloat16* x, const bfloat16* scores, long panel, long rows,
                            long keys, long width, float* sums, long key, long all_columns,
                            bool add, Ahead& ahead) {
  multiply(width, up(keys, 32) / 16, rows, {x, up(rows, kDepth)}, {scores, panel}, sums + key,
           all_columns, add, ahead);
}
static inline long sums_of(long keys, long width) { return products_of(width, up(keys, 32) / 16); }

#else

static inline void rows_to_sum(const bfloat16* from, long stride, long rows, long width,
                               bfloat16* to) {
  paired_rows(from, stride, rows, width, to);
}

template <int V>
static __attribute__((noinline)) void sum_column(const bfloat16* scores, long panel, long keys,
                                                 Bf16Right x, long rows, float* c, long row,
                                                 bool add, Ahead& ahead) {
  constexpr long kHeight = 16 / V;  // keys of a tile; fewer sums would wait for each other
  for (long j = 0; j < keys; j += kHeight, c += kHeight * row) {
    ahead.ask();
    const Bf16Left some = {scores + j / 16 * panel + 2 * (j % 16), 0};
    pair_tile_of<V, true, kHeight>(least(kHeight, keys - j), some, x, rows, c, row, add);
  }
}

// Sums of the keys from `key` on = scores^T x, or += if `add`.
static inline void sum_rows(const bfloat16* x, const bfloat16* scores, long panel, long rows,
                            long keys, long width, float* sums, long key, long, bool add,
                            Ahead& ahead) {
  const long size = up(width, 16);
  Bf16Right right = {x, 16 * up(rows, kDepth)};
  float* to = sums + key * size;
  long n = size / 16;
  for (; n >= 2; n -= 2, right.p += 2 * right.panel, to += 32)
    sum_column<2>(scores, panel, keys, right, rows, to, size, add, ahead);
  if (n) sum_column<1>(scores, panel, keys, right, rows, to, size, add, ahead);
}
static inline long sums_of(long keys, long width) {
  const long panels = up(width, 16) / 16;
  return up(keys, 8) / 8 * (panels / 2) + up(keys, 16) / 16 * (panels % 2);
}
static inline void write_sums(const float* sums, long, long keys, long width, float factor,
                              bfloat16* to, long stride) {
  write_half(sums, up(width, 16), keys, width, factor, to, stride);
}

#endif

}  // namespace KUNLUN_ISA
