// GDPA of bfloat16 tensors with the products of product_bf16.h. Queries are multiplied where they
// lie; activated scores are rounded to bfloat16. What will be written is asked for ahead as well:
// +3 % on Zen 5.
#pragma once
#include <initializer_list>

#include "gdpa_items.h"
#include "pieces.h"
#include "product_bf16.h"

namespace KUNLUN_ISA {

// Query and key rows of a block. The backward's blocks are as long as the second cache allows, the
// forward's scores stay in the first: with AMX they are activated before idle tile units go to
// sleep, from which they take 0.3 us to wake (in the backward they sleep anyway); with vectors 48
// rows are four whole tiles of registers.
constexpr long kBackBlock = 128, kBf16Keys = 128;
#if defined(__AMX_BF16__)
constexpr long kForwardBlock = 32;
static inline long forward_block(long) { return kForwardBlock; }
#else
constexpr long kForwardBlock = 48;
// Blocks of nearly one size: a last one of few rows would wait for its own sums.
static inline long forward_block(long rows) {
  const long blocks = (rows + kForwardBlock - 1) / kForwardBlock;
  return (rows + blocks - 1) / blocks;
}
#endif

// weights[0 .. n) = act(scale * scores[0 .. n)), rounded; n in twos of vectors.
typedef void (*Weigh)(const float* scores, bfloat16* weights, long n, float scale);

template <class A>
static void weigh(const float* scores, bfloat16* weights, long n, float scale) {
  const typename Coarse<A>::type act;
  for (long i = 0; i < n; i += 32) {
    const vec low = act.value(scale * load(scores + i));
    const vec high = act.value(scale * load(scores + i + 16));
    _mm512_storeu_si512(weights + i, rounded(low, high));
  }
}
static const Weigh kWeigh[] = {weigh<Raw>,  weigh<Gelu>,       weigh<GeluApprox>, weigh<Silu>,
                               weigh<Relu>, weigh<ReluSquare>, weigh<LeakyRelu>,  weigh<Hardswish>};

struct Scores {  // of a block in the backward
  const float *s, *ds;                       // [rows, columns]: q k^T, and grad v^T
  bfloat16 *p_pairs, *ds_pairs, *ds_rows;    // act(s), and act'(s) ds twice: in pairs, in rows
  long columns, panel;                       // panel: of the pairs, which are of rows
};

// Odd rows have room for one more, which holds nothing.
typedef void (*Differentiate)(const Scores& b, long rows, float scale);

template <class A>
static void differentiate(const Scores& b, long rows, float scale) {
  alignas(64) static const uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                  21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                  11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_load_si512(kPairs);
  const typename Coarse<A>::type act;
  for (long r = 0; r < rows; r += 2)
    for (long j = 0; j < b.columns; j += 16) {
      const long first = r * b.columns + j, second = first + b.columns;
      vec slope, slope2;
      const vec y = act.both(scale * load(b.s + first), slope);
      const vec y2 = act.both(scale * load(b.s + second), slope2);
      const __m512i p = rounded(y, y2);
      const __m512i ds = rounded(slope * load(b.ds + first), slope2 * load(b.ds + second));
      const long pair = j / 16 * b.panel + 16 * r;
      _mm512_storeu_si512(b.p_pairs + pair, _mm512_permutexvar_epi16(pairs, p));
      _mm512_storeu_si512(b.ds_pairs + pair, _mm512_permutexvar_epi16(pairs, ds));
      _mm256_storeu_si256((__m256i*)(b.ds_rows + first), _mm512_castsi512_si256(ds));
      _mm256_storeu_si256((__m256i*)(b.ds_rows + second), _mm512_extracti64x4_epi64(ds, 1));
    }
}
static const Differentiate kDifferentiate[] = {
    differentiate<Raw>,       differentiate<Gelu>,     differentiate<GeluApprox>,
    differentiate<Silu>,      differentiate<Relu>,     differentiate<ReluSquare>,
    differentiate<LeakyRelu>, differentiate<Hardswish>};

// Places one after another in memory from `base` on.
struct Carver {
  uintptr_t base;
  int64_t used = 0;
  template <class T>
  T* take(long n) {
    T* p = reinterpret_cast<T*>(base + used);
    used += up(n * sizeof(T), 64);
    return p;
  }
};
// The buffers B of an operator in this thread's scratch memory; false without memory.
template <class B>
static inline bool carve(B& buffers, long keys, long width, long groups) {
  Carver size = {0};
  buffers.carve(size, keys, width, groups);
  Carver places = {reinterpret_cast<uintptr_t>(scratch(size.used / sizeof(float)))};
  if (!places.base) return false;
  buffers.carve(places, keys, width, groups);
  return true;
}

struct GdpaBf16 : GdpaItems<bfloat16> {
  struct ForwardBuffers {
    bfloat16 *k, *v, *q, *p;
    float *s, *o;
    void carve(Carver& c, long keys, long width, long groups) {
      const long size = up(width, kDepth);
      k = c.take<bfloat16>(groups * up(keys, 32) * size);
      v = c.take<bfloat16>(groups * up(keys, 32) * size);
      q = c.take<bfloat16>(kForwardBlock * size);
      p = c.take<bfloat16>(kForwardBlock * kBf16Keys);
      s = c.take<float>(kForwardBlock * kBf16Keys);
      o = c.take<float>(kForwardBlock * size);
    }
  };

  bool forward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = up(width, 16), share = heads_each();
    const long first = it.group * share, last = first + it.groups * share;
    if (it.keys == 0 || it.rows == 0) {
      for (long h = first; h < last; h++)
        write_zeros(at(a.out, it.q_start, h), a.out.row, it.rows, width);
      return true;
    }
    ForwardBuffers f;
    if (!carve(f, it.keys, width, it.groups)) return false;
    const long each = up(it.keys, 32) * up(width, kDepth);
    for (long g = 0; g < it.groups; g++) {
      columns_of(at(a.k, it.k_start, it.group + g), a.k.row, it.keys, width, f.k + g * each);
      paired_rows(at(a.v, it.k_start, it.group + g), a.v.row, it.keys, width, f.v + g * each);
    }
    const long k_panel = 16 * up(width, kDepth), v_panel = 16 * up(it.keys, kDepth);
    const long block = forward_block(it.rows);
    const Item next = after(index);
    Later<bfloat16> next_keys = keys_over(a.k, a.v, next, it, block);
    const TileUse use;
    for (long r = 0; r < it.rows; r += block)
      for (long h = first; h < last; h++) {
        const long rows = least(block, it.rows - r), own = (h - first) / share * each;
        Ahead ahead;
        for (const Tensor3* t : {&a.q, &a.out}) ask_behind(ahead, *t, r, h, it, next, block);
        next_keys.add_to(ahead);
        ahead.spread(products_of(rows, up(it.keys, 32) / 16) + products_of(rows, size / 16));
        const Bf16Left q = left_rows(at(a.q, it.q_start + r, h), a.q.row, rows,
                                     a.q_rows - it.q_start - r, width, f.q);
        for (long j = 0; j < it.keys; j += kBf16Keys) {
          const long keys = least(kBf16Keys, it.keys - j), columns = up(keys, 32);
          multiply(rows, columns / 16, width, q, {f.k + own + j / 16 * k_panel, k_panel}, f.s,
                   columns, false, ahead);
          kWeigh[a.activations[h]](f.s, f.p, rows * columns, (float)a.scale);
          silence_columns(f.p, rows, keys);
          multiply(rows, size / 16, keys, {f.p, columns}, {f.v + own + 16 * j, v_panel}, f.o, size,
                   j > 0, ahead);
        }
        write_half(f.o, size, rows, width, (float)a.out_scale, at(a.out, it.q_start + r, h),
                   a.out.row);
      }
    return true;
  }

  // Padding that met an infinity holds NaN, and would meet zeros in the next product.
  static void silence_columns(bfloat16* p, long rows, long keys) {
    const long columns = up(keys, 32);
    if (keys == columns) return;
    for (long r = 1; r <= rows; r++) {
      bfloat16* last = p + r * columns - 32;
      _mm512_storeu_si512(last, load_half(last, keys % 32));
    }
  }
  // The same for rows of paired rows, of which tiles read whole steps.
  static void silence_rows(bfloat16* p, long rows, long keys) {
    for (long j = 0; j < keys; j += 16, p += kPairPanel) {
      bfloat16* last = p + 32 * (rows / 2);
      if (rows % 2)
        _mm512_storeu_si512(
            last, _mm512_and_si512(_mm512_loadu_si512(last), _mm512_set1_epi32(0xffff)));
      for (long pair = (rows + 1) / 2; pair < up(rows, kDepth) / 2; pair++)
        _mm512_storeu_si512(p + 32 * pair, __m512i{});
    }
  }

  static constexpr long kPairPanel = 16 * kBackBlock;

  struct BackwardBuffers {
    bfloat16 *k_columns, *v_columns, *k, *q, *grad, *q_sum, *grad_sum;
    bfloat16 *p_pairs, *ds_pairs, *ds_rows;
    float *s, *ds, *dq, *dk, *dv;
    void carve(Carver& c, long keys, long width, long groups) {
      const long size = up(width, kDepth), columns = up(keys, 32);
      for (bfloat16** x : {&k_columns, &v_columns, &k})
        *x = c.take<bfloat16>(groups * columns * size);
      for (bfloat16** x : {&q, &grad, &q_sum, &grad_sum}) *x = c.take<bfloat16>(kBackBlock * size);
      for (bfloat16** x : {&p_pairs, &ds_pairs, &ds_rows})
        *x = c.take<bfloat16>(kBackBlock * kBf16Keys);
      for (float** x : {&s, &ds}) *x = c.take<float>(kBackBlock * kBf16Keys);
      dq = c.take<float>(kBackBlock * size);
      for (float** x : {&dk, &dv}) *x = c.take<float>(groups * columns * size);
    }
  };

  bool backward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = up(width, 16), share = heads_each();
    const long first = it.group * share, last = first + it.groups * share;
    if (it.keys == 0 || it.rows == 0) {
      for (long h = first; h < last; h++)
        write_zeros(at(a.dq, it.q_start, h), a.dq.row, it.rows, width);
      for (long g = it.group; g < it.group + it.groups; g++) {
        write_zeros(at(a.dk, it.k_start, g), a.dk.row, it.keys, width);
        write_zeros(at(a.dv, it.k_start, g), a.dv.row, it.keys, width);
      }
      return true;
    }
    BackwardBuffers f;
    if (!carve(f, it.keys, width, it.groups)) return false;
    const long column_panel = 16 * up(width, kDepth), row_panel = 16 * up(it.keys, kDepth);
    const long all_columns = up(it.keys, 32), each = all_columns * up(width, kDepth);
    for (long g = 0; g < it.groups; g++) {
      const bfloat16* k = at(a.k, it.k_start, it.group + g);
      const bfloat16* v = at(a.v, it.k_start, it.group + g);
      columns_of(k, a.k.row, it.keys, width, f.k_columns + g * each);
      columns_of(v, a.v.row, it.keys, width, f.v_columns + g * each);
      paired_rows(k, a.k.row, it.keys, width, f.k + g * each);
    }
    const Item next = after(index);
    Later<bfloat16> next_keys = keys_over(a.k, a.v, next, it, kBackBlock);
    Later<bfloat16> key_sums = keys_over(a.dk, a.dv, it, it, kBackBlock);
    const TileUse use;
    for (long r = 0; r < it.rows; r += kBackBlock)
      for (long h = first; h < last; h++) {
        const long rows = least(kBackBlock, it.rows - r), own = (h - first) / share * each;
        const bool add = r > 0 || (h - first) % share > 0;  // the first block writes dk and dv
        Ahead ahead;
        for (const Tensor3* t : {&a.q, &a.out, &a.dq})
          ask_behind(ahead, *t, r, h, it, next, kBackBlock);
        next_keys.add_to(ahead);
        key_sums.add_to(ahead);
        ahead.spread(2 * products_of(rows, all_columns / 16) + products_of(rows, size / 16) +
                     2 * sums_of(it.keys, width));
        const long there = a.q_rows - it.q_start - r;
        const bfloat16* from = at(a.q, it.q_start + r, h);
        const bfloat16* outer = at(a.out, it.q_start + r, h);
        const Bf16Left q = left_rows(from, a.q.row, rows, there, width, f.q);
        const Bf16Left grad = left_rows(outer, a.out.row, rows, there, width, f.grad);
        rows_to_sum(from, a.q.row, rows, width, f.q_sum);
        rows_to_sum(outer, a.out.row, rows, width, f.grad_sum);
        for (long j = 0; j < it.keys; j += kBf16Keys) {
          const long keys = least(kBf16Keys, it.keys - j), columns = up(keys, 32);
          const long panel = own + j / 16 * column_panel;
          multiply(rows, columns / 16, width, q, {f.k_columns + panel, column_panel}, f.s, columns,
                   false, ahead);
          multiply(rows, columns / 16, width, grad, {f.v_columns + panel, column_panel}, f.ds,
                   columns, false, ahead);
          kDifferentiate[a.activations[h]](
              {f.s, f.ds, f.p_pairs, f.ds_pairs, f.ds_rows, columns, kPairPanel}, rows,
              (float)a.scale);
          silence_columns(f.ds_rows, rows, keys);
          silence_rows(f.p_pairs, rows, keys);
          silence_rows(f.ds_pairs, rows, keys);
          multiply(rows, size / 16, keys, {f.ds_rows, columns}, {f.k + own + 16 * j, row_panel},
                   f.dq, size, j > 0, ahead);
          sum_rows(f.q_sum, f.ds_pairs, kPairPanel, rows, keys, width, f.dk + own, j, all_columns,
                   add, ahead);
          sum_rows(f.grad_sum, f.p_pairs, kPairPanel, rows, keys, width, f.dv + own, j,
                   all_columns, add, ahead);
        }
        write_half(f.dq, size, rows, width, (float)(a.scale * a.out_scale),
                   at(a.dq, it.q_start + r, h), a.dq.row);
      }
    for (long g = 0; g < it.groups; g++) {
      write_sums(f.dk + g * each, all_columns, it.keys, width, (float)(a.scale * a.out_scale),
                 at(a.dk, it.k_start, it.group + g), a.dk.row);
      write_sums(f.dv + g * each, all_columns, it.keys, width, (float)a.out_scale,
                 at(a.dv, it.k_start, it.group + g), a.dv.row);
    }
    return true;
  }

  static Status run(const GdpaArgs* a, bool backward) {
    if (!offsets_fit(a->q_offsets, a->samples, a->q_rows)) return kBadOffsets;
    if (!offsets_fit(a->kv_offsets, a->samples, a->kv_rows)) return kBadKvOffsets;
    const long bytes = backward ? 3 * sizeof(bfloat16) + 2 * sizeof(float) : 2 * sizeof(bfloat16);
    const GdpaBf16 context = {of(*a, backward, bytes * up(a->width, kDepth))};
    if (!context.work.data) return kNoMemory;
    const auto body =
        backward ? call<GdpaBf16, &GdpaBf16::backward> : call<GdpaBf16, &GdpaBf16::forward>;
    return run_items(context.items(), a->threads, body, &context) ? kDone : kNoMemory;
  }
};

static Status gdpa_forward(const GdpaArgs* a) { return GdpaBf16::run(a, false); }
static Status gdpa_backward(const GdpaArgs* a) { return GdpaBf16::run(a, true); }

}  // namespace KUNLUN_ISA
