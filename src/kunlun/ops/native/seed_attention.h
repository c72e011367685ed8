// Seed attention: the same queries, the seeds, read every sequence. One item is a sequence and
// some heads; in the backward a fixed slice of the sequences and a head, since their gradients of
// the seeds are added up. How many slices depends on the batch alone, never on the threads.
#pragma once
#include "softmax.h"

namespace KUNLUN_ISA {

constexpr long kSlices = 32;
constexpr long kSeeds = 4 * 16;  // lanes of a tile: a whole number of vectors everywhere
constexpr long kSeedKeys = 64;   // key rows at a time

template <class T>
struct SeedAttention {
  const SoftmaxArgs& a;
  Parts work;
  float* seeds;   // a head: panels, then (backward) rows
  float* partial; // backward: [slices, heads, seeds, padded(width)]

  static T* at(const Tensor3& t, long row, long head) {
    return static_cast<T*>(t.data) + row * t.row + head * t.head;
  }
  long lanes() const { return padded(a.seeds); }
  long panels() const { return lanes() * a.width; }
  long slices() const { return least(kSlices, most(1, a.samples)); }
  long rows() const { return a.seeds * padded(a.width); }

  void pack_seeds() const {
    for (long h = 0; h < a.heads; h++) {
      float* to = seeds + h * (panels() + rows());
      const float scale = (float)a.scale * kLog2E;
      read_panels(at(a.q, 0, h), a.q.row, a.seeds, a.width, scale, to);
      read_rows(at(a.q, 0, h), a.q.row, a.seeds, a.width, 1.0f, to + panels());
    }
  }

  // The next chunk of keys, of this sequence or of the one behind it.
  Ahead after(long row, long keys, long head) const {
    const long n = least(kSeedKeys, keys > 0 ? keys : a.rows - row);
    Ahead ahead;
    ahead.add(at(a.k, row, head), a.k.row, n, a.width);
    ahead.add(at(a.v, row, head), a.v.row, n, a.width);
    return ahead;
  }

  // All heads of a forward's item read a chunk of keys before the next one comes; each has its
  // maxima, sums and results meanwhile.
  long state() const { return lanes() * (2 + padded(a.width)); }
  long together() const {
    return heads_at_once(a.heads, state() + panels(), a.samples, a.threads);
  }
  long shares() const { return (a.heads + together() - 1) / together(); }

  bool forward(int64_t index) const {
    const long sample = work.data[index / shares()].sample, size = padded(a.width);
    const long begin = index % shares() * together(), heads = least(together(), a.heads - begin);
    const long start = a.offsets[sample], keys = a.offsets[sample + 1] - start;
    const bool around = around_caches<T>(a.samples * a.seeds * a.heads * a.width);
    float* k = scratch(2 * kSeedKeys * size + kSeedKeys * kSeeds + heads * state());
    if (!k) return false;
    float *v = k + kSeedKeys * size, *s = v + kSeedKeys * size, *states = s + kSeedKeys * kSeeds;
    const auto tile = [&](long h, long i) {
      const long n = least(kSeeds, a.seeds - i);
      float *top = states + h * state(), *total = top + lanes(), *result = total + lanes();
      const float* qt = seeds + (begin + h) * (panels() + rows());
      return QueryTile{n,       padded(n), a.width,          qt + i * a.width,
                       top + i, total + i, result + i * size};
    };
    for (long j = 0; j < keys; j += kSeedKeys)
      for (long h = 0; h < heads; h++) {
        const long n = least(kSeedKeys, keys - j), row = start + j, next = row + n;
        const long head = begin + h, last = j + n < keys ? start + keys : a.rows;
        const long more = least(kSeedKeys, last - next);
        Ahead ahead;
        ask_share(ahead, at(a.k, next, begin), a.k.row, more, heads * a.width, h, heads);
        ask_share(ahead, at(a.v, next, begin), a.v.row, more, heads * a.width, h, heads);
        ahead.spread(tiles_of(n, lanes() / kLanes) + tiles_of(a.seeds, size / kLanes));
        const Left key = read_rows(at(a.k, row, head), a.k.row, n, a.width, k, kAnywhere);
        const Left value = read_rows(at(a.v, row, head), a.v.row, n, a.width, v);
        for (long i = 0; i < a.seeds; i += kSeeds)
          read_chunk(tile(h, i), key, value, n, s, j == 0, kNoBand, 0, 0, &ahead);
      }
    for (long h = 0; h < heads; h++) {
      T* out = at(a.out, sample * a.seeds, begin + h);
      float* lse = a.lse + sample * a.seeds * a.heads + begin + h;
      if (keys == 0) {
        write_zeros(out, a.out.row, a.seeds, a.width);
        for (long i = 0; i < a.seeds; i++) lse[i * a.heads] = 0.0f;
        continue;
      }
      for (long i = 0; i < a.seeds; i += kSeeds)
        finish(tile(h, i), out + i * a.out.row, a.out.row, lse + i * a.heads, a.heads, around);
    }
    if (around) end_around();
    return true;
  }

  bool backward(int64_t index) const {
    const long slice = index / a.heads, head = index % a.heads, size = padded(a.width);
    float* dq = partial + (slice * a.heads + head) * rows();
    const long first = a.samples * slice / slices(), last = a.samples * (slice + 1) / slices();
    float* k = scratch(4 * kSeedKeys * size + 2 * kSeedKeys * kSeeds + 2 * lanes() + panels() +
                       rows());
    if (!k) return false;
    float *v = k + kSeedKeys * size, *dk = v + kSeedKeys * size, *dv = dk + kSeedKeys * size;
    float *s = dv + kSeedKeys * size, *ds = s + kSeedKeys * kSeeds, *lse = ds + kSeedKeys * kSeeds;
    float *delta = lse + lanes(), *gradt = delta + lanes(), *grad = gradt + panels();
    const bool around = around_caches<T>(a.rows * a.heads * a.width);
    const float *qt = seeds + head * (panels() + rows()), *q = qt + panels();
    for (long i = 0; i < rows(); i++) dq[i] = 0.0f;
    for (long sample = first; sample < last; sample++) {
      const long start = a.offsets[sample], keys = a.offsets[sample + 1] - start;
      if (keys == 0) continue;
      const long row = sample * a.seeds;
      const Left outer = read_grads(at(a.grad, row, head), a.grad.row, at(a.out, row, head),
                                    a.out.row, a.lse + row * a.heads + head, a.heads, a.seeds,
                                    lanes(), a.width, grad, gradt, lse, delta);
      for (long j = 0; j < keys; j += kSeedKeys) {
        const long n = least(kSeedKeys, keys - j);
        const Left key = read_rows(at(a.k, start + j, head), a.k.row, n, a.width, k);
        const Left value = read_rows(at(a.v, start + j, head), a.v.row, n, a.width, v);
        Ahead ahead = after(start + j + n, keys - j - n, head);
        ahead.spread(2 * tiles_of(n, lanes() / kLanes));
        for (long i = 0; i < a.seeds; i += kSeeds) {
          const long m = least(kSeeds, a.seeds - i);
          const GradTile tile = {m,
                                 padded(m),
                                 a.width,
                                 {q + i * size, size},
                                 {outer.p + i * outer.row, outer.row},
                                 qt + i * a.width,
                                 gradt + i * a.width,
                                 lse + i,
                                 delta + i,
                                 dq + i * size};
          differentiate_chunk(tile, key, value, n, s, ds, dk, dv, false, i > 0, kNoBand, 0, 0,
                              &ahead);
        }
        write_rows(dk, n, a.width, (float)a.scale, at(a.dk, start + j, head), a.dk.row, around);
        write_rows(dv, n, a.width, 1.0f, at(a.dv, start + j, head), a.dv.row, around);
      }
    }
    if (around) end_around();
    return true;
  }

  // The slices' gradients of the seeds, added in their order.
  void add_up() const {
    for (long h = 0; h < a.heads; h++) {
      float* sum = partial + h * rows();
      for (long slice = 1; slice < slices(); slice++)
        for (long i = 0; i < rows(); i += kLanes)
          store(sum + i, load(sum + i) + load(partial + (slice * a.heads + h) * rows() + i));
      write_rows(sum, a.seeds, a.width, (float)a.scale, at(a.dq, 0, h), a.dq.row);
    }
  }

  static Status run(const SoftmaxArgs* a, bool backward) {
    SeedAttention c = {*a, parts(a->offsets, a->samples, kWhole, a->threads), nullptr, nullptr};
    const long packed = a->heads * (c.panels() + c.rows());
    c.seeds = shared(packed + (backward ? c.slices() * a->heads * c.rows() : 0));
    if (!c.work.data || !c.seeds) return kNoMemory;
    c.partial = c.seeds + packed;
    c.pack_seeds();
    const auto body = backward ? call<SeedAttention, &SeedAttention::backward>
                               : call<SeedAttention, &SeedAttention::forward>;
    const long items = backward ? c.slices() * a->heads : a->samples * c.shares();
    if (!run_items(items, a->threads, body, &c))
      return kNoMemory;
    if (backward) c.add_up();
    return kDone;
  }
};

static Status seed(const SoftmaxArgs* a, bool backward) {
  if (!offsets_fit(a->offsets, a->samples, a->rows)) return kBadOffsets;
  return a->bf16 ? SeedAttention<bfloat16>::run(a, backward)
                 : SeedAttention<float>::run(a, backward);
}
static Status seed_forward(const SoftmaxArgs* a) { return seed(a, false); }
static Status seed_backward(const SoftmaxArgs* a) { return seed(a, true); }

}  // namespace KUNLUN_ISA
