// GDPA of bfloat16 tensors, with the products of product_bf16.h. As in gdpa.h an item is a sample
// and a key head. Its blocks, of query rows and key rows, pass three stages: scores, activation,
// and the products with the activated scores. While tiles make the scores of one block and the
// results of another, the vector units activate the block between the two.
#pragma once
#include <initializer_list>

#include "activations.h"
#include "library.h"
#include "product_bf16.h"

namespace KUNLUN_ISA {

constexpr long kRows16 = 32;   // query rows of a block
constexpr long kKeys16 = 128;  // key rows of a block

// weights[0 .. n) = act(scale * scores[0 .. n)), rounded; n in twos of vectors.
typedef void (*Weigh)(const float* scores, bfloat16* weights, long n, float scale);

template <class A>
static void weigh(const float* scores, bfloat16* weights, long n, float scale) {
  for (long i = 0; i < n; i += 32) {
    const vec low = A::value(scale * load(scores + i));
    const vec high = A::value(scale * load(scores + i + 16));
    _mm512_storeu_si512(weights + i, rounded(low, high));
  }
}
static const Weigh kWeigh[] = {weigh<Raw>,  weigh<Gelu>,       weigh<GeluApprox>, weigh<Silu>,
                               weigh<Relu>, weigh<ReluSquare>, weigh<LeakyRelu>,  weigh<Hardswish>};

// Where a block's rows and columns are, for the backward's activation.
struct Slopes {
  const float *s, *ds;       // [rows, columns]: scores, and grad v^T
  bfloat16 *p, *dp, *turn;   // act(s) and act'(s) ds in pairs of rows; act'(s) ds in rows
  long columns, panel;       // panel: of p and dp
};

// Pairs of rows: units [from, to) of 2 rows and 16 columns each.
typedef void (*Differentiate)(const Slopes& b, long from, long to, float scale);

template <class A>
static void differentiate(const Slopes& b, long from, long to, float scale) {
  alignas(64) static const uint16_t kPairs[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                  21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                  11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_load_si512(kPairs);
  const long vectors = b.columns / 16;
  long pair = from / vectors, v = from % vectors;
  for (; from < to; from++) {
    const long first = 2 * pair * b.columns + 16 * v, second = first + b.columns;
    vec slope, slope2;
    const vec y = A::both(scale * load(b.s + first), slope);
    const vec y2 = A::both(scale * load(b.s + second), slope2);
    const __m512i p = rounded(y, y2);
    const __m512i dp = rounded(slope * load(b.ds + first), slope2 * load(b.ds + second));
    _mm512_storeu_si512(b.p + v * b.panel + 32 * pair, _mm512_permutexvar_epi16(pairs, p));
    _mm512_storeu_si512(b.dp + v * b.panel + 32 * pair, _mm512_permutexvar_epi16(pairs, dp));
    _mm256_storeu_si256((__m256i*)(b.turn + first), _mm512_castsi512_si256(dp));
    _mm256_storeu_si256((__m256i*)(b.turn + second), _mm512_extracti64x4_epi64(dp, 1));
    if (++v == vectors) v = 0, pair++;
  }
}
static const Differentiate kDifferentiate[] = {
    differentiate<Raw>,       differentiate<Gelu>,     differentiate<GeluApprox>,
    differentiate<Silu>,      differentiate<Relu>,     differentiate<ReluSquare>,
    differentiate<LeakyRelu>, differentiate<Hardswish>};

// Places one after another; from nullptr it only counts.
struct Carver {
  char* at;
  template <class T>
  T* take(long n) {
    T* p = reinterpret_cast<T*>(at);
    at += up(n * sizeof(T), 64);
    return p;
  }
};
// The buffers B of an operator in this thread's scratch memory; false without memory.
template <class B, class... Sizes>
static inline bool carve(B& buffers, Sizes... sizes) {
  Carver count = {nullptr};
  buffers.carve(count, sizes...);
  Carver real = {reinterpret_cast<char*>(scratch((count.at - (char*)nullptr) / sizeof(float)))};
  if (!real.at) return false;
  buffers.carve(real, sizes...);
  return true;
}

struct GdpaBf16 {
  const GdpaArgs& a;
  const int64_t* order;

  static bfloat16* at(const Tensor3& t, long row, long head) {
    return static_cast<bfloat16*>(t.data) + row * t.row + head * t.head;
  }

  struct Item {
    long group, q_start, rows, k_start, keys;
  };
  Item item(int64_t index) const {
    const long sample = order[index / a.kv_heads];
    return {index % a.kv_heads, a.q_offsets[sample], a.q_offsets[sample + 1] - a.q_offsets[sample],
            a.kv_offsets[sample], a.kv_offsets[sample + 1] - a.kv_offsets[sample]};
  }
  long heads_each() const { return a.heads / a.kv_heads; }

  struct Block {  // of query rows `row` .. and key rows `key` ..
    long head, row, rows, key, keys;
    long columns() const { return up(keys, 32); }
  };
  struct Blocks {  // of an item, key rows innermost
    const Item& it;
    long last;  // head
    Block now;
    Blocks(const Item& item, long share)
        : it(item), last((item.group + 1) * share - 1), now{item.group * share, 0, 0, -kKeys16, 0} {
    }
    bool next() {
      now.key += kKeys16;
      if (now.key >= it.keys) now.key = 0, now.row += kRows16;
      if (now.row >= it.rows) now.row = 0, now.head++;
      now.rows = least(kRows16, it.rows - now.row);
      now.keys = least(kKeys16, it.keys - now.key);
      return now.head <= last;
    }
  };

  struct ForwardBuffers {
    bfloat16 *k, *v, *q, *p[2];
    float *s[2], *o;
    void carve(Carver& c, long keys, long width) {
      const long size = up(width, kDepth);
      k = c.take<bfloat16>(up(keys, 32) * size);
      v = c.take<bfloat16>(up(keys, 32) * size);
      q = c.take<bfloat16>(kRows16 * size);
      o = c.take<float>(kRows16 * size);
      for (int i = 0; i < 2; i++) {
        s[i] = c.take<float>(kRows16 * kKeys16);
        p[i] = c.take<bfloat16>(kRows16 * kKeys16);
      }
    }
  };

  struct Activation {  // of one block, a slice at a time
    Weigh weigh = nullptr;
    const float* s = nullptr;
    bfloat16* p = nullptr;
    long left = 0, slice = 0;
    float scale = 1;

    void advance(long n) {
      weigh(s, p, n, scale);
      s += n, p += n, left -= n;
    }
    void step() {
      if (left > 0) advance(least(slice, left));
    }
    void finish() {
      if (left > 0) advance(left);
    }
  };

  bool forward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = up(width, 16), share = heads_each();
    if (it.keys == 0) {
      for (long h = it.group * share; h < (it.group + 1) * share; h++)
        write_zeros(at(a.out, it.q_start, h), a.out.row, it.rows, width);
      return true;
    }
    if (it.rows == 0) return true;
    ForwardBuffers f;
    if (!carve(f, it.keys, width)) return false;
    columns_of(at(a.k, it.k_start, it.group), a.k.row, it.keys, width, f.k);
    rows_of(at(a.v, it.k_start, it.group), a.v.row, it.keys, width, f.v);
    const long k_panel = 16 * up(width, kDepth), v_panel = 16 * up(it.keys, kDepth);
    const TileUse use;
    Blocks blocks(it, share);
    Block now = {}, behind = {};
    Activation activation;
    bool ahead = true;
    for (int turn = 0; ahead || now.rows || behind.rows; turn ^= 1) {
      ahead = ahead && blocks.next();
      if (ahead) {
        const Block& b = blocks.now;
        const Bf16Left q =
            left_rows(at(a.q, it.q_start + b.row, b.head), a.q.row, b.rows, width, f.q);
        multiply(b.rows, b.columns() / 16, width, q, {f.k + b.key / 16 * k_panel, k_panel},
                 f.s[turn], b.columns(), false, activation);
      }
      if (behind.rows) {
        const Block& b = behind;
        multiply(b.rows, size / 16, b.keys, {f.p[turn], b.columns()}, {f.v + 16 * b.key, v_panel},
                 f.o, size, b.key > 0, activation);
        if (b.key + b.keys == it.keys)
          write_half(f.o, size, b.rows, width, (float)a.out_scale,
                     at(a.out, it.q_start + b.row, b.head), a.out.row);
      }
      activation.finish();
      if (now.rows) silence_columns(now, f.p[turn ^ 1]);
      behind = now;
      now = ahead ? blocks.now : Block{};
      activation = {kWeigh[a.activations[now.head]], f.s[turn], f.p[turn],
                    now.rows * now.columns(), 16 * kRows16 * 32 / up(width, 32), (float)a.scale};
    }
    return true;
  }

  // Padding that met an infinity holds NaN, and would meet zeros in the next product.
  static void silence_columns(const Block& b, bfloat16* p) {
    if (b.keys == b.columns()) return;
    const long n = b.keys % 32;
    for (long r = 0; r < b.rows; r++) {
      bfloat16* last = p + (r + 1) * b.columns() - 32;
      _mm512_storeu_si512(last, load_half(last, n));
    }
  }
  // The same for rows of paired rows.
  static void silence_rows(const Block& b, bfloat16* p) {
    for (long v = 0; v < b.columns() / 16; v++, p += kPanel16) {
      bfloat16* last = p + 32 * (b.rows / 2);
      if (b.rows % 2)
        _mm512_storeu_si512(
            last, _mm512_and_si512(_mm512_loadu_si512(last), _mm512_set1_epi32(0xffff)));
      for (long pair = (b.rows + 1) / 2; pair < kRows16 / 2; pair++)
        _mm512_storeu_si512(p + 32 * pair, __m512i{});
    }
  }

  static constexpr long kPanel16 = 16 * kRows16;

  struct BackwardBuffers {
    bfloat16 *k_columns, *v_columns, *k, *q, *grad, *qt, *gradt, *p[2], *dp[2], *turn[2];
    float *s[2], *ds[2], *dq, *dk, *dv;
    void carve(Carver& c, long keys, long width) {
      const long size = up(width, kDepth), columns = up(keys, 32);
      for (bfloat16** x : {&k_columns, &v_columns, &k}) *x = c.take<bfloat16>(columns * size);
      for (bfloat16** x : {&q, &grad, &qt, &gradt}) *x = c.take<bfloat16>(kRows16 * size);
      for (int i = 0; i < 2; i++) {
        for (float** x : {s + i, ds + i}) *x = c.take<float>(kRows16 * kKeys16);
        for (bfloat16** x : {p + i, dp + i, turn + i}) *x = c.take<bfloat16>(kRows16 * kKeys16);
      }
      dq = c.take<float>(kRows16 * size);
      dk = c.take<float>(columns * size);
      dv = c.take<float>(columns * size);
    }
  };

  struct Differentiation {
    Differentiate differentiate = nullptr;
    Slopes block = {};
    long done = 0, units = 0, slice = 0;
    float scale = 1;

    void advance(long n) {
      differentiate(block, done, done + n, scale);
      done += n;
    }
    void step() {
      if (done < units) advance(least(slice, units - done));
    }
    void finish() {
      if (done < units) advance(units - done);
    }
  };

  bool backward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = up(width, 16), share = heads_each();
    if (it.keys == 0 || it.rows == 0) {
      for (long h = it.group * share; h < (it.group + 1) * share; h++)
        write_zeros(at(a.dq, it.q_start, h), a.dq.row, it.rows, width);
      write_zeros(at(a.dk, it.k_start, it.group), a.dk.row, it.keys, width);
      write_zeros(at(a.dv, it.k_start, it.group), a.dv.row, it.keys, width);
      return true;
    }
    BackwardBuffers f;
    if (!carve(f, it.keys, width)) return false;
    const bfloat16* k = at(a.k, it.k_start, it.group);
    columns_of(k, a.k.row, it.keys, width, f.k_columns);
    columns_of(at(a.v, it.k_start, it.group), a.v.row, it.keys, width, f.v_columns);
    rows_of(k, a.k.row, it.keys, width, f.k);
    const long column_panel = 16 * up(width, kDepth), row_panel = 16 * up(it.keys, kDepth);
    const long keys = up(it.keys, 32);
    const TileUse use;
    Blocks blocks(it, share);
    Block now = {}, behind = {};
    Differentiation activation;
    Bf16Left qt = {}, gradt = {};
    bool ahead = true, add = false;
    for (int turn = 0; ahead || now.rows || behind.rows; turn ^= 1) {
      ahead = ahead && blocks.next();
      if (ahead) {
        const Block& b = blocks.now;
        const long row = it.q_start + b.row, panel = b.key / 16 * column_panel;
        const Bf16Left q = left_rows(at(a.q, row, b.head), a.q.row, b.rows, width, f.q);
        const Bf16Left grad = left_rows(at(a.out, row, b.head), a.out.row, b.rows, width, f.grad);
        multiply(b.rows, b.columns() / 16, width, q, {f.k_columns + panel, column_panel},
                 f.s[turn], b.columns(), false, activation);
        multiply(b.rows, b.columns() / 16, width, grad, {f.v_columns + panel, column_panel},
                 f.ds[turn], b.columns(), false, activation);
      }
      if (behind.rows) {
        const Block& b = behind;
        const long row = it.q_start + b.row;
        if (b.key == 0) {
          qt = turned_rows(at(a.q, row, b.head), a.q.row, b.rows, width, f.qt);
          gradt = turned_rows(at(a.out, row, b.head), a.out.row, b.rows, width, f.gradt);
        }
        multiply(b.rows, size / 16, b.keys, {f.turn[turn], b.columns()},
                 {f.k + 16 * b.key, row_panel}, f.dq, size, b.key > 0, activation);
        multiply(width, b.columns() / 16, b.rows, qt, {f.dp[turn], kPanel16}, f.dk + b.key, keys,
                 add, activation);
        multiply(width, b.columns() / 16, b.rows, gradt, {f.p[turn], kPanel16}, f.dv + b.key,
                 keys, add, activation);
        if (b.key + b.keys == it.keys) {
          add = true;
          write_half(f.dq, size, b.rows, width, (float)(a.scale * a.out_scale),
                     at(a.dq, row, b.head), a.dq.row);
        }
      }
      activation.finish();
      if (now.rows) {
        silence_columns(now, f.turn[turn ^ 1]);
        silence_rows(now, f.p[turn ^ 1]);
        silence_rows(now, f.dp[turn ^ 1]);
      }
      behind = now;
      now = ahead ? blocks.now : Block{};
      activation = {kDifferentiate[a.activations[now.head]],
                    {f.s[turn], f.ds[turn], f.p[turn], f.dp[turn], f.turn[turn], now.columns(),
                     kPanel16},
                    0,
                    (now.rows + 1) / 2 * (now.columns() / 16),
                    1 + 32 * 32 / 5 / up(width, 32),
                    (float)a.scale};
    }
    write_turned(f.dk, keys, it.keys, width, (float)(a.scale * a.out_scale),
                 at(a.dk, it.k_start, it.group), a.dk.row);
    write_turned(f.dv, keys, it.keys, width, (float)a.out_scale,
                 at(a.dv, it.k_start, it.group), a.dv.row);
    return true;
  }

  static Status run(const GdpaArgs* a, bool backward) {
    if (!offsets_fit(a->q_offsets, a->samples, a->q_rows)) return kBadOffsets;
    if (!offsets_fit(a->kv_offsets, a->samples, a->kv_rows)) return kBadKvOffsets;
    const GdpaBf16 context = {*a, work_order(a->q_offsets, a->samples, a->threads)};
    if (!context.order) return kNoMemory;
    const auto body =
        backward ? call<GdpaBf16, &GdpaBf16::backward> : call<GdpaBf16, &GdpaBf16::forward>;
    return run_items(a->samples * a->kv_heads, a->threads, body, &context) ? kDone : kNoMemory;
  }
};

static Status gdpa_forward(const GdpaArgs* a) { return GdpaBf16::run(a, false); }
static Status gdpa_backward(const GdpaArgs* a) { return GdpaBf16::run(a, true); }

}  // namespace KUNLUN_ISA
