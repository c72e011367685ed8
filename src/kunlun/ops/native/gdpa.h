// GDPA: out = out_scale * act(scale * q k^T) v per sample and head.
#pragma once
#include <initializer_list>

#include "activations.h"
#include "gdpa_items.h"

namespace KUNLUN_ISA {

constexpr long kBlock = 48;   // query rows at a time: their scores stay in the first cache
constexpr long kKeys = 128;   // key rows at a time
// Whether large results pass a buffer on their way around the caches. Measured: 1.15 to 1.4 times
// as fast on Zen 3, but 3 to 6 % slower on Xeons with AVX-512.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kBuffersResults = true;
#else
constexpr bool kBuffersResults = false;
#endif

template <class T>
struct Gdpa : GdpaItems<T> {
  using Items = GdpaItems<T>;
  using typename Items::Item;
  using Items::a, Items::after, Items::ask_behind, Items::at, Items::heads_each, Items::item,
      Items::keys_over;

  bool forward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = padded(width), keys = padded(it.keys), share = heads_each();
    const bool around = kBuffersResults && around_caches<T>(a.q_rows * a.heads * width) &&
                        whole_lines(a.out.data, a.out.row | a.out.head | width);
    const bool direct = sizeof(T) == 4 && size == width && !around;  // no other form is needed
    const long each = keys * width + it.keys * size;      // of a key head
    float* kt = scratch(it.groups * each + kBlock * (2 * size + kKeys));
    if (!kt) return false;
    float *s = kt + it.groups * each, *q = s + kBlock * kKeys, *o = q + kBlock * size;
    for (long g = 0; g < it.groups; g++) {
      float* to = kt + g * each;
      read_panels(at(a.k, it.k_start, it.group + g), a.k.row, it.keys, width, a.scale, to);
      read_rows(at(a.v, it.k_start, it.group + g), a.v.row, it.keys, width, a.out_scale,
                to + keys * width);
    }
    const Item next = after(index);
    Later<T> next_keys = keys_over(a.k, a.v, next, it, kBlock);
    const long first = it.group * share, last = first + it.groups * share;
    for (long r = 0; r < it.rows; r += kBlock)
      for (long h = first; h < last; h++) {
        const long rows = least(kBlock, it.rows - r);
        const T* from = at(a.q, it.q_start + r, h);
        T* to = at(a.out, it.q_start + r, h);
        if (it.keys == 0) {
          write_zeros(to, a.out.row, rows, width);
          continue;
        }
        Ahead ahead;
        ask_behind(ahead, a.q, r, h, it, next, kBlock);
        next_keys.add_to(ahead);
        ahead.spread(tiles_of(rows, keys / kLanes) + tiles_of(rows, size / kLanes));
        const float *panels = kt + (h - first) / share * each, *values = panels + keys * width;
        Left left = {q, size};
        if constexpr (sizeof(T) == 4) left = {from, a.q.row};
        else read_rows(from, a.q.row, rows, width, 1.0f, q);
        float* result = direct ? reinterpret_cast<float*>(to) : o;
        const long result_row = direct ? a.out.row : size;
        for (long j = 0; j < it.keys; j += kKeys) {
          const long n = least(kKeys, it.keys - j), columns = padded(n);
          multiply<false>(rows, columns / kLanes, width, left,
                          panels_of(panels + j * width, width), s, columns, false, &ahead);
          kActivate[a.activations[h]](s, rows * columns);
          multiply<false>(rows, size / kLanes, n, {s, columns}, rows_of(values + j * size, size),
                          result, result_row, j > 0, &ahead);
        }
        if (!direct) write_rows(o, rows, width, 1.0f, to, a.out.row, around);
      }
    if (around) end_around();
    return true;
  }

  bool backward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = padded(width), keys = padded(it.keys), share = heads_each();
    const bool around = around_caches<T>(a.q_rows * a.heads * width);
    const bool around_keys = around_caches<T>(a.kv_rows * a.kv_heads * width);
    const long each = 2 * keys * width + 3 * it.keys * size;  // of a key head
    float* kt = scratch(it.groups * each + kBlock * (3 * size + 2 * kKeys));
    if (!kt) return false;
    float *q = kt + it.groups * each, *grad = q + kBlock * size, *dq = grad + kBlock * size;
    float *s = dq + kBlock * size, *ds = s + kBlock * kKeys;
    for (long g = 0; g < it.groups; g++) {
      float *to = kt + g * each, *vt = to + keys * width;
      read_panels(at(a.k, it.k_start, it.group + g), a.k.row, it.keys, width, a.scale, to);
      read_panels(at(a.v, it.k_start, it.group + g), a.v.row, it.keys, width, a.out_scale, vt);
      read_rows(at(a.k, it.k_start, it.group + g), a.k.row, it.keys, width, 1.0f,
                vt + keys * width);
    }
    const Item next = after(index);
    Later<T> next_keys = keys_over(a.k, a.v, next, it, kBlock);
    const long first = it.group * share, last = first + it.groups * share;
    for (long r = 0; r < it.rows; r += kBlock)
      for (long h = first; h < last; h++) {
        const long rows = least(kBlock, it.rows - r);
        T* to = at(a.dq, it.q_start + r, h);
        if (it.keys == 0) {
          write_zeros(to, a.dq.row, rows, width);
          continue;
        }
        Ahead ahead;
        for (const Tensor3* t : {&a.q, &a.out}) ask_behind(ahead, *t, r, h, it, next, kBlock);
        next_keys.add_to(ahead);
        ahead.spread(2 * tiles_of(rows, keys / kLanes) + tiles_of(rows, size / kLanes) +
                     2 * tiles_of(it.keys, size / kLanes));
        const float *panels = kt + (h - first) / share * each, *vt = panels + keys * width;
        const float* k = vt + keys * width;
        float *dk = kt + (h - first) / share * each + 2 * keys * width + it.keys * size;
        float* dv = dk + it.keys * size;
        const bool add = r > 0 || (h - first) % share > 0;  // the first block writes dk and dv
        const Left query = read_rows(at(a.q, it.q_start + r, h), a.q.row, rows, width, q);
        const Left outer = read_rows(at(a.out, it.q_start + r, h), a.out.row, rows, width, grad);
        for (long j = 0; j < it.keys; j += kKeys) {
          const long n = least(kKeys, it.keys - j), columns = padded(n), vectors = columns / kLanes;
          multiply<false>(rows, vectors, width, query, panels_of(panels + j * width, width), s,
                          columns, false, &ahead);
          multiply<false>(rows, vectors, width, outer, panels_of(vt + j * width, width), ds,
                          columns, false, &ahead);
          kActivateBoth[a.activations[h]](s, ds, rows * columns);
          multiply<false>(rows, size / kLanes, n, {ds, columns}, rows_of(k + j * size, size), dq,
                          size, j > 0, &ahead);
          multiply<true>(n, size / kLanes, rows, {ds, columns}, rows_of(query), dk + j * size,
                         size, add, &ahead);
          multiply<true>(n, size / kLanes, rows, {s, columns}, rows_of(outer), dv + j * size,
                         size, add, &ahead);
        }
        write_rows(dq, rows, width, a.scale, to, a.dq.row, around);
      }
    for (long g = 0; g < it.groups; g++) {
      const float *dk = kt + g * each + 2 * keys * width + it.keys * size;
      T *to_k = at(a.dk, it.k_start, it.group + g), *to_v = at(a.dv, it.k_start, it.group + g);
      if (it.rows) {
        write_rows(dk, it.keys, width, a.scale, to_k, a.dk.row, around_keys);
        write_rows(dk + it.keys * size, it.keys, width, a.out_scale, to_v, a.dv.row,
                   around_keys);
      } else {
        write_zeros(to_k, a.dk.row, it.keys, width);
        write_zeros(to_v, a.dv.row, it.keys, width);
      }
    }
    if (around || around_keys) end_around();
    return true;
  }

  static Status run(const GdpaArgs* a, bool backward) {
    const long bytes = (backward ? 5 : 2) * sizeof(float);
    const Gdpa context = {Items::of(*a, backward, bytes * padded(a->width))};
    if (!context.work.data) return kNoMemory;
    const auto body =
        backward ? call<Gdpa, &Gdpa::backward> : call<Gdpa, &Gdpa::forward>;
    return run_items(context.items(), a->threads, body, &context) ? kDone : kNoMemory;
  }
};

static Status gdpa(const GdpaArgs* a, bool backward) {
  if (!offsets_fit(a->q_offsets, a->samples, a->q_rows)) return kBadOffsets;
  if (!offsets_fit(a->kv_offsets, a->samples, a->kv_rows)) return kBadKvOffsets;
  return a->bf16 ? Gdpa<bfloat16>::run(a, backward) : Gdpa<float>::run(a, backward);
}
static Status gdpa_forward(const GdpaArgs* a) { return gdpa(a, false); }
static Status gdpa_backward(const GdpaArgs* a) { return gdpa(a, true); }

}  // namespace KUNLUN_ISA
