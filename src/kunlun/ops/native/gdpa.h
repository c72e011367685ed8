// GDPA: out = out_scale * act(scale * q k^T) v per sample and head. One item is a sample and a key
// head: k and v are brought into the form of products once and read by all its query heads.
#pragma once
#include "activations.h"
#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

constexpr long kBlock = 48;   // query rows at a time: their scores stay in the first cache
constexpr long kKeys = 128;   // key rows at a time

template <class T>
struct Gdpa {
  const GdpaArgs& a;
  const int64_t* order;

  static T* at(const Tensor3& t, long row, long head) {
    return static_cast<T*>(t.data) + row * t.row + head * t.head;
  }

  struct Item {
    long group, q_start, rows, k_start, keys;
  };
  Item item(int64_t index) const {
    const long sample = order[index / a.kv_heads];
    return {index % a.kv_heads, a.q_offsets[sample], a.q_offsets[sample + 1] - a.q_offsets[sample],
            a.kv_offsets[sample], a.kv_offsets[sample + 1] - a.kv_offsets[sample]};
  }

  bool forward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = padded(width), keys = padded(it.keys), share = heads_each();
    const bool direct = sizeof(T) == 4 && size == width;  // results need no other form
    float* kt = scratch(keys * width + it.keys * size + kBlock * (2 * size + kKeys));
    if (!kt) return false;
    float *v = kt + keys * width, *s = v + it.keys * size, *q = s + kBlock * kKeys;
    float* o = q + kBlock * size;
    read_panels(at(a.k, it.k_start, it.group), a.k.row, it.keys, width, a.scale, kt);
    const T* from_v = at(a.v, it.k_start, it.group);
    Left values = {v, size};
    if (a.out_scale == 1.0) values = read_rows(from_v, a.v.row, it.keys, width, v);
    else read_rows(from_v, a.v.row, it.keys, width, a.out_scale, v);
    for (long h = it.group * share; h < (it.group + 1) * share; h++)
      for (long r = 0; r < it.rows; r += kBlock) {
        const long rows = least(kBlock, it.rows - r);
        const T* from = at(a.q, it.q_start + r, h);
        T* to = at(a.out, it.q_start + r, h);
        if (it.keys == 0) {
          write_zeros(to, a.out.row, rows, width);
          continue;
        }
        Left left = {q, size};
        if constexpr (sizeof(T) == 4) left = {from, a.q.row};
        else read_rows(from, a.q.row, rows, width, 1.0f, q);
        float* result = direct ? reinterpret_cast<float*>(to) : o;
        const long result_row = direct ? a.out.row : size;
        for (long j = 0; j < it.keys; j += kKeys) {
          const long n = least(kKeys, it.keys - j), columns = padded(n);
          multiply<false>(rows, columns / kLanes, width, left, panels_of(kt + j * width, width), s,
                          columns, false);
          kActivate[a.activations[h]](s, rows * columns);
          const Right value = rows_of({values.p + j * values.row, values.row});
          multiply<false>(rows, size / kLanes, n, {s, columns}, value, result, result_row, j > 0);
        }
        if (!direct) write_rows(o, rows, width, 1.0f, to, a.out.row);
      }
    return true;
  }

  bool backward(int64_t index) const {
    const Item it = item(index);
    const long width = a.width, size = padded(width), keys = padded(it.keys), share = heads_each();
    float* kt = scratch(2 * keys * width + 3 * it.keys * size + kBlock * (3 * size + 2 * kKeys));
    if (!kt) return false;
    float *vt = kt + keys * width, *k = vt + keys * width, *dk = k + it.keys * size;
    float *dv = dk + it.keys * size, *q = dv + it.keys * size, *grad = q + kBlock * size;
    float *dq = grad + kBlock * size, *s = dq + kBlock * size, *ds = s + kBlock * kKeys;
    read_panels(at(a.k, it.k_start, it.group), a.k.row, it.keys, width, a.scale, kt);
    read_panels(at(a.v, it.k_start, it.group), a.v.row, it.keys, width, a.out_scale, vt);
    const Left key = read_rows(at(a.k, it.k_start, it.group), a.k.row, it.keys, width, k);
    bool add = false;  // the first block of rows writes dk and dv
    for (long h = it.group * share; h < (it.group + 1) * share; h++)
      for (long r = 0; r < it.rows; r += kBlock) {
        const long rows = least(kBlock, it.rows - r);
        T* to = at(a.dq, it.q_start + r, h);
        if (it.keys == 0) {
          write_zeros(to, a.dq.row, rows, width);
          continue;
        }
        const Left query = read_rows(at(a.q, it.q_start + r, h), a.q.row, rows, width, q);
        const Left outer = read_rows(at(a.out, it.q_start + r, h), a.out.row, rows, width, grad);
        for (long j = 0; j < it.keys; j += kKeys) {
          const long n = least(kKeys, it.keys - j), columns = padded(n), vectors = columns / kLanes;
          multiply<false>(rows, vectors, width, query, panels_of(kt + j * width, width), s,
                          columns, false);
          multiply<false>(rows, vectors, width, outer, panels_of(vt + j * width, width), ds,
                          columns, false);
          kActivateBoth[a.activations[h]](s, ds, rows * columns);
          const Right some = rows_of({key.p + j * key.row, key.row});
          multiply<false>(rows, size / kLanes, n, {ds, columns}, some, dq, size, j > 0);
          multiply<true>(n, size / kLanes, rows, {ds, columns}, rows_of(query), dk + j * size,
                         size, add);
          multiply<true>(n, size / kLanes, rows, {s, columns}, rows_of(outer), dv + j * size,
                         size, add);
        }
        add = true;
        write_rows(dq, rows, width, a.scale, to, a.dq.row);
      }
    T *to_k = at(a.dk, it.k_start, it.group), *to_v = at(a.dv, it.k_start, it.group);
    if (add) {
      write_rows(dk, it.keys, width, a.scale, to_k, a.dk.row);
      write_rows(dv, it.keys, width, a.out_scale, to_v, a.dv.row);
    } else {
      write_zeros(to_k, a.dk.row, it.keys, width);
      write_zeros(to_v, a.dv.row, it.keys, width);
    }
    return true;
  }

  long heads_each() const { return a.heads / a.kv_heads; }

  static Status run(const GdpaArgs* a, bool backward) {
    const Gdpa context = {*a, work_order(a->q_offsets, a->samples, a->threads)};
    if (!context.order) return kNoMemory;
    const auto body =
        backward ? call<Gdpa, &Gdpa::backward> : call<Gdpa, &Gdpa::forward>;
    return run_items(a->samples * a->kv_heads, a->threads, body, &context) ? kDone : kNoMemory;
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
