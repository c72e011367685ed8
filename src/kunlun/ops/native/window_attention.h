// Window attention: row i of a sequence reads rows j with |i - j| <= window (causal: and j <= i).
// A forward's item is a part of a sequence and some key heads. A backward's is a sequence and a key
// head; its gradients of k and v are its own.
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

  long reach() const { return least(a.window, 1L << 30); }
  long above() const { return a.causal ? 0 : reach(); }
  Band band() const { return {-reach(), above()}; }

  // A forward has all its heads read for a tile of queries before the next. k is read where it
  // stands if products can take it there. v is copied, each row once: a tile reads it several
  // times, and rows so far apart compete for the same few places of the first cache.
  long copies() const { return sizeof(T) == 4 && a.width % kLanes == 0 ? 1 : 2; }
  // Rows of a head that are kept: twice what a tile reads, so that they seldom have to move up.
  long kept(long rows) const { return least(rows, 2 * (reach() + kQueries + above())); }
  long together() const {
    const long each = copies() * kept(work.longest) * padded(a.width);
    return heads_at_once(a.kv_heads, each, work.count, a.threads);
  }
  long slices() const { return (a.kv_heads + together() - 1) / together(); }

  bool forward(int64_t index) const {
    const Part& part = work.data[index / slices()];
    const long start = a.offsets[part.sample], rows = a.offsets[part.sample + 1] - start;
    const long width = a.width, size = padded(width), share = a.heads / a.kv_heads;
    const long group = index % slices() * together();
    const long groups = least(together(), a.kv_heads - group);
    const long first = group * share, heads = groups * share;
    const bool around = around_caches<T>(a.rows * a.heads * width);
    const float scale = (float)a.scale * kLog2E;
    long base = most(0, part.first - reach()), copied = base;  // rows that stand in the buffers
    const long room = kept(least(rows, part.last + above()) - base) * size, all = copies() * room;
    float* v = scratch(groups * all + kBandKeys * kQueries + kQueries * (width + 2 + size));
    if (!v) return false;
    float *s = v + groups * all, *qt = s + kBandKeys * kQueries, *top = qt + kQueries * width;
    float *total = top + kQueries, *result = total + kQueries;
    for (long i = part.first; i < part.last; i += kQueries) {
      const long n = least(kQueries, part.last - i);
      const long from = most(0, i - reach()), to = least(rows, i + n + above());
      if ((to - base) * size > room) {
        for (float* buffer = v; buffer < s; buffer += room)
          memmove(buffer, buffer + (from - base) * size, (copied - from) * size * sizeof(float));
        base = from;
      }
      for (long h = first; h < first + heads; h++) {
        const long g = h / share, more = start + copied;
        const long next = start + i + n, after = start + to;
        // Where row 0 of the sequence would stand.
        float *values = v + (g - group) * all - base * size, *keys = values + room;
        Ahead ahead;  // for v its copying asks well enough
        ask_share(ahead, at(a.q, next, first), a.q.row, least(kQueries, a.rows - next),
                  heads * width, h - first, heads);
        if (h % share == 0) {
          ask_share(ahead, at(a.k, after, group), a.k.row, least(kQueries, a.rows - after),
                    groups * width, g - group, groups);
          read_rows(at(a.v, more, g), a.v.row, to - copied, width, 1.0f, values + copied * size);
          if (copies() == 2)
            read_rows(at(a.k, more, g), a.k.row, to - copied, width, 1.0f, keys + copied * size);
        }
        ahead.spread(tiles_of(to - from, padded(n) / kLanes) + tiles_of(n, size / kLanes));
        read_panels(at(a.q, start + i, h), a.q.row, n, width, scale, qt);
        const QueryTile tile = {n, padded(n), width, qt, top, total, result};
        Left key = {keys, size};
        if constexpr (sizeof(T) == 4)
          if (copies() == 1) key = {at(a.k, start, g), a.k.row};
        for (long j = from; j < to; j += kBandKeys)
          read_chunk(tile, {key.p + j * key.row, key.row}, {values + j * size, size},
                     least(kBandKeys, to - j), s, j == from, band(), j, i, &ahead);
        finish(tile, at(a.out, start + i, h), a.out.row, a.lse + (start + i) * a.heads + h,
               a.heads, around);
      }
      copied = to;
    }
    if (around) end_around();
    return true;
  }

  struct Item {  // of a backward: a whole sequence and a key head
    long group, start, rows;
  };
  Item item(int64_t index) const {
    const long sample = work.data[index / a.kv_heads].sample, start = a.offsets[sample];
    return {index % a.kv_heads, start, a.offsets[sample + 1] - start};
  }

  // n queries of head h and `keys` rows of a key head, for a backward.
  void ask(Ahead& ahead, long row, long h, long n, long key, long group, long keys) const {
    ahead.add(at(a.q, row, h), a.q.row, n, a.width);
    ahead.add(at(a.grad, row, h), a.grad.row, n, a.width);
    ahead.add(at(a.out, row, h), a.out.row, n, a.width);
    ahead.add(at(a.k, key, group), a.k.row, keys, a.width);
    ahead.add(at(a.v, key, group), a.v.row, keys, a.width);
  }
  // The beginning of the item that this thread is likely to take next.
  void ask_item(Ahead& ahead, int64_t index) const {
    if (index >= work.count * a.kv_heads) return;
    const Item next = item(index);
    const long n = least(kQueries, next.rows);
    ask(ahead, next.start, next.group * (a.heads / a.kv_heads), n, next.start, next.group, n);
  }

  bool backward(int64_t index) const {
    const Item it = item(index);
    if (it.rows == 0) return true;
    const bool around = around_caches<T>(a.rows * a.heads * a.width);
    const bool around_keys = around_caches<T>(a.rows * a.kv_heads * a.width);
    const long width = a.width, size = padded(width), share = a.heads / a.kv_heads;
    const float scale = (float)a.scale * kLog2E;
    float* k = scratch(4 * it.rows * size + 2 * kBandKeys * kQueries +
                       kQueries * (2 * width + 2 + 3 * size));
    if (!k) return false;
    float *v = k + it.rows * size, *dk = v + it.rows * size, *dv = dk + it.rows * size;
    float *s = dv + it.rows * size, *ds = s + kBandKeys * kQueries, *qt = ds + kBandKeys * kQueries;
    float *gradt = qt + kQueries * width, *lse = gradt + kQueries * width, *delta = lse + kQueries;
    float *q = delta + kQueries, *grad = q + kQueries * size, *dq = grad + kQueries * size;
    // Where they will stand; copied as they are needed, and gradients written as they are complete.
    const Left key = read_rows(at(a.k, it.start, it.group), a.k.row, 0, width, k);
    const Left value = read_rows(at(a.v, it.start, it.group), a.v.row, 0, width, v);
    const long first = it.group * share, last = first + share;
    long complete = 0;
    for (long h = first; h < last; h++) {
      long written = h == first ? 0 : it.rows;  // rows of k and v, and of dk and dv, that stand
      for (long i = 0; i < it.rows; i += kQueries) {
        const long n = least(kQueries, it.rows - i);
        const long from = most(0, i - reach()), to = least(it.rows, i + n + above());
        const long row = it.start + i;
        Ahead ahead;
        if (i + n < it.rows)
          ask(ahead, row + n, h, least(kQueries, it.rows - i - n), it.start + to, it.group,
              h == first ? least(n, it.rows - to) : 0);
        else if (h + 1 < last)
          ask(ahead, it.start, h + 1, least(kQueries, it.rows), it.start, it.group, 0);
        else ask_item(ahead, index + a.threads);
        ahead.spread(2 * tiles_of(to - from, padded(n) / kLanes));
        const Left query = read_rows(at(a.q, row, h), a.q.row, n, width, q);
        read_panels(query.p, query.row, n, width, scale, qt);
        const Left outer = read_grads(at(a.grad, row, h), a.grad.row, at(a.out, row, h),
                                      a.out.row, a.lse + row * a.heads + h, a.heads, n, padded(n),
                                      width, grad, gradt, lse, delta);
        const GradTile tile = {n, padded(n), width, query, outer, qt, gradt, lse, delta, dq};
        if (written < to) {
          const long at_row = it.start + written;
          read_rows(at(a.k, at_row, it.group), a.k.row, to - written, width, k + written * size);
          read_rows(at(a.v, at_row, it.group), a.v.row, to - written, width, v + written * size);
        }
        for (; written < to; written++)
          for (long d = 0; d < size; d += kLanes) {
            store(dk + written * size + d, vec{});
            store(dv + written * size + d, vec{});
          }
        for (long j = from; j < to; j += kBandKeys)
          differentiate_chunk(tile, {key.p + j * key.row, key.row},
                              {value.p + j * value.row, value.row}, least(kBandKeys, to - j), s, ds,
                              dk + j * size, dv + j * size, j == from, true, band(), j, i, &ahead);
        write_rows(dq, n, width, (float)a.scale, at(a.dq, row, h), a.dq.row, around);
        if (h + 1 < last) continue;
        const long until = i + n < it.rows ? most(0, i + n - reach()) : it.rows;
        const long done = until - complete, to_row = it.start + complete;
        write_rows(dk + complete * size, done, width, (float)a.scale,
                   at(a.dk, to_row, it.group), a.dk.row, around_keys);
        write_rows(dv + complete * size, done, width, 1.0f, at(a.dv, to_row, it.group), a.dv.row,
                   around_keys);
        complete = until;
      }
    }
    if (around) end_around();
    return true;
  }

  static Status run(const SoftmaxArgs* a, bool backward) {
    // Neighbouring queries add to the gradients of the same keys: a backward is not cut.
    const WindowAttention c = {
        *a, parts(a->offsets, a->samples, backward ? kWhole : kPart, a->threads)};
    if (!c.work.data) return kNoMemory;
    const auto body = backward ? call<WindowAttention, &WindowAttention::backward>
                               : call<WindowAttention, &WindowAttention::forward>;
    const long items = c.work.count * (backward ? a->kv_heads : c.slices());
    return run_items(items, a->threads, body, &c) ? kDone : kNoMemory;
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
