// Window attention: row i of a sequence reads rows j with |i - j| <= window (causal: and j <= i).
// One item is a sequence and a key head; its gradients of k and v are its own.
#pragma once
#include "softmax.h"

namespace KUNLUN_ISA {

constexpr long kQueries = 32;  // lanes of a tile; more would reach more keys outside the band
constexpr long kBandKeys = 160;  // key rows at a time: all that a tile reads at a window of 64

template <class T>
struct WindowAttention {
  const SoftmaxArgs& a;
  Parts work;

  static T* at(const Tensor3& t, long row, long head) {
    return static_cast<T*>(t.data) + row * t.row + head * t.head;
  }

  struct Item {
    long group, start, rows;  // the keys it reads
    long first, last;         // its queries, counted from the first of them
  };
  Item item(int64_t index) const {
    const Part& part = work.data[index / a.kv_heads];
    const long start = a.offsets[part.sample], all = a.offsets[part.sample + 1] - start;
    const long from = most(0, part.first - reach());
    const long to = least(all, part.last + (a.causal ? 0 : reach()));
    return {index % a.kv_heads, start + from, to - from, part.first - from, part.last - from};
  }
  long reach() const { return least(a.window, 1L << 30); }
  Band band() const { return {-reach(), a.causal ? 0 : reach()}; }

  // Calls f(first query, queries, first key, past the last key) for every tile.
  template <class F>
  void tiles(const Item& it, F f) const {
    for (long i = it.first; i < it.last; i += kQueries) {
      const long n = least(kQueries, it.last - i);
      f(i, n, most(0, i - reach()), least(it.rows, i + n + (a.causal ? 0 : reach())));
    }
  }

  // k and v of the item that this thread is likely to take next.
  Later<T> after(int64_t index, const Item& it) const {
    if (index + a.threads >= work.count * a.kv_heads) return {};
    const Item next = item(index + a.threads);
    const long steps = (it.last - it.first + kQueries - 1) / kQueries * (a.heads / a.kv_heads);
    return {at(a.k, next.start, next.group), at(a.v, next.start, next.group), a.k.row, a.v.row,
            next.rows, steps ? (next.rows + steps - 1) / steps : 0, a.width};
  }

  bool forward(int64_t index) const {
    const Item it = item(index);
    if (it.rows == 0) return true;
    const long width = a.width, size = padded(width), share = a.heads / a.kv_heads;
    const float scale = (float)a.scale * kLog2E;
    float* k = scratch(2 * it.rows * size + kBandKeys * kQueries + kQueries * (width + 2 + size));
    if (!k) return false;
    float *v = k + it.rows * size, *s = v + it.rows * size, *qt = s + kBandKeys * kQueries;
    float *top = qt + kQueries * width, *total = top + kQueries, *result = total + kQueries;
    const Left key = read_rows(at(a.k, it.start, it.group), a.k.row, it.rows, width, k);
    const Left value = read_rows(at(a.v, it.start, it.group), a.v.row, it.rows, width, v);
    Later<T> next = after(index, it);
    for (long h = it.group * share; h < (it.group + 1) * share; h++)
      tiles(it, [&](long i, long n, long from, long to) {
        Ahead ahead;
        ahead.add(at(a.q, it.start + i + n, h), a.q.row, least(kQueries, it.last - i - n), width);
        next.add_to(ahead);
        ahead.spread(tiles_of(to - from, n / kLanes + 1) + tiles_of(n, size / kLanes));
        read_panels(at(a.q, it.start + i, h), a.q.row, n, width, scale, qt);
        const QueryTile tile = {n, padded(n), width, qt, top, total, result};
        for (long j = from; j < to; j += kBandKeys)
          read_chunk(tile, {key.p + j * key.row, key.row}, {value.p + j * value.row, value.row},
                     least(kBandKeys, to - j), s, j == from, band(), j, i, &ahead);
        finish(tile, at(a.out, it.start + i, h), a.out.row, a.lse + (it.start + i) * a.heads + h,
               a.heads);
      });
    return true;
  }

  bool backward(int64_t index) const {
    const Item it = item(index);
    if (it.rows == 0) return true;
    const long width = a.width, size = padded(width), share = a.heads / a.kv_heads;
    const float scale = (float)a.scale * kLog2E;
    float* k = scratch(4 * it.rows * size + 2 * kBandKeys * kQueries +
                       kQueries * (2 * width + 2 + 3 * size));
    if (!k) return false;
    float *v = k + it.rows * size, *dk = v + it.rows * size, *dv = dk + it.rows * size;
    float *s = dv + it.rows * size, *ds = s + kBandKeys * kQueries, *qt = ds + kBandKeys * kQueries;
    float *gradt = qt + kQueries * width, *lse = gradt + kQueries * width, *delta = lse + kQueries;
    float *q = delta + kQueries, *grad = q + kQueries * size, *dq = grad + kQueries * size;
    const Left key = read_rows(at(a.k, it.start, it.group), a.k.row, it.rows, width, k);
    const Left value = read_rows(at(a.v, it.start, it.group), a.v.row, it.rows, width, v);
    Later<T> next = after(index, it);
    for (long h = it.group * share; h < (it.group + 1) * share; h++) {
      long written = h == it.group * share ? 0 : it.rows;  // rows of dk and dv that hold something
      tiles(it, [&](long i, long n, long from, long to) {
        const long row = it.start + i, later = row + n, more = least(kQueries, it.last - i - n);
        Ahead ahead;
        ahead.add(at(a.q, later, h), a.q.row, more, width);
        ahead.add(at(a.grad, later, h), a.grad.row, more, width);
        ahead.add(at(a.out, later, h), a.out.row, more, width);
        next.add_to(ahead);
        ahead.spread(2 * tiles_of(to - from, n / kLanes + 1));
        const Left query = read_rows(at(a.q, row, h), a.q.row, n, width, q);
        read_panels(query.p, query.row, n, width, scale, qt);
        const Left outer = read_grads(at(a.grad, row, h), a.grad.row, at(a.out, row, h),
                                      a.out.row, a.lse + row * a.heads + h, a.heads, n, padded(n),
                                      width, grad, gradt, lse, delta);
        const GradTile tile = {n, padded(n), width, query, outer, qt, gradt, lse, delta, dq};
        for (; written < to; written++)
          for (long d = 0; d < size; d += kLanes) {
            store(dk + written * size + d, vec{});
            store(dv + written * size + d, vec{});
          }
        for (long j = from; j < to; j += kBandKeys)
          differentiate_chunk(tile, {key.p + j * key.row, key.row},
                              {value.p + j * value.row, value.row}, least(kBandKeys, to - j), s, ds,
                              dk + j * size, dv + j * size, j == from, true, band(), j, i, &ahead);
        write_rows(dq, n, width, (float)a.scale, at(a.dq, row, h), a.dq.row);
      });
    }
    write_rows(dk, it.rows, width, (float)a.scale, at(a.dk, it.start, it.group), a.dk.row);
    write_rows(dv, it.rows, width, 1.0f, at(a.dv, it.start, it.group), a.dv.row);
    return true;
  }

  static Status run(const SoftmaxArgs* a, bool backward) {
    // Neighbouring queries add to the gradients of the same keys: a backward is not cut.
    const WindowAttention c = {
        *a, parts(a->offsets, a->samples, backward ? kWhole : kPart, a->threads)};
    if (!c.work.data) return kNoMemory;
    const auto body = backward ? call<WindowAttention, &WindowAttention::backward>
                               : call<WindowAttention, &WindowAttention::forward>;
    return run_items(c.work.count * a->kv_heads, a->threads, body, &c) ? kDone : kNoMemory;
  }
};

static Status window(const SoftmaxArgs* a, bool backward) {
  if (!offsets_fit(a->offsets, a->samples, a->rows)) return kBadOffsets;
  return a->bf16 ? WindowAttention<bfloat16>::run(a, backward)
                 : WindowAttention<float>::run(a, backward);
}
static Status window_forward(const SoftmaxArgs* a) { return window(a, false); }
static Status window_backward(const SoftmaxArgs* a) { return window(a, true); }

}  // namespace KUNLUN_ISA
