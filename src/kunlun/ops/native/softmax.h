// What window_attention and seed_attention share: a tile of query rows reads chunks of key rows.
//
// Scores lie with keys as rows and queries in lanes, so maxima and sums over keys run down whole
// vectors, and k and v are read as they are. Scores carry scale * log2(e): weights are powers of 2.
#pragma once
#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

constexpr float kBanned = -1e30f;     // finite: a wholly banned column holds numbers, not NaN
constexpr float kLog2E = 1.44269504f;

// Key j0 + j may be read by query i0 + i where low <= (j0 + j) - (i0 + i) <= high.
struct Band {
  long low, high;
};
constexpr Band kNoBand = {-(1L << 40), 1L << 40};

// Calls f(row, lane offset, forbidden lanes) for the vectors of a tile that the band crosses.
template <class F>
static inline void outside(Band band, long keys, long key, long lanes, long query, F f) {
  for (long v = 0; v < lanes; v += kLanes) {
    ivec lane;
    for (int e = 0; e < kLanes; e++) lane[e] = e;
    for (long j = 0; j < keys; j++) {
      const long distance = key + j - query - v;  // of lane 0; lane e is e less
      if (distance - (kLanes - 1) >= band.low && distance <= band.high) continue;
      const int low = (int)most(distance - band.high, -1);
      const int high = (int)least(distance - band.low, kLanes);
      f(j, v, (ivec)((lane < low) | (lane > high)));
    }
  }
}

struct QueryTile {    // `rows` queries in `lanes` lanes; buffers of padded rows and lanes
  long rows, lanes, width;
  const float* qt;    // panels of scale * log2(e) * q
  float *top, *total; // [lanes], the running maximum and sum
  float* result;      // [lanes, padded(width)], not yet divided
};

// One chunk of keys; s is room for keys * lanes scores.
static inline void read_chunk(const QueryTile& t, Left k, Left v, long keys, float* s, bool first,
                              Band band, long key, long query, Ahead* ahead = nullptr) {
  const long size = padded(t.width);
  multiply<false>(keys, t.lanes / kLanes, t.width, k, panels_of(t.qt, t.width), s, t.lanes, false,
                  ahead);
  outside(band, keys, key, t.lanes, query, [&](long j, long lane, ivec banned) {
    float* p = s + j * t.lanes + lane;
    store(p, banned ? all(kBanned) : load(p));
  });
  for (long lane = 0; lane < t.lanes; lane += kLanes) {
    float* column = s + lane;
    vec top = first ? all(kBanned) : load(t.top + lane), before = top;
    vec other = top;
    long j = 0;
    for (; j + 2 <= keys; j += 2) {
      top = at_least(load(column + j * t.lanes), top);
      other = at_least(load(column + (j + 1) * t.lanes), other);
    }
    if (j < keys) top = at_least(load(column + j * t.lanes), top);
    top = at_least(top, other);
    vec total = {}, rest = {};
    for (j = 0; j + 2 <= keys; j += 2) {
      vec a = exp2(load(column + j * t.lanes) - top);
      vec b = exp2(load(column + (j + 1) * t.lanes) - top);
      store(column + j * t.lanes, a);
      store(column + (j + 1) * t.lanes, b);
      total += a;
      rest += b;
    }
    if (j < keys) {
      vec a = exp2(load(column + j * t.lanes) - top);
      store(column + j * t.lanes, a);
      total += a;
    }
    total += rest;
    if (!first) {
      vec shrink = exp2(before - top);
      total += shrink * load(t.total + lane);
      float factor[kLanes];
      store(factor, shrink);
      for (int e = 0; e < kLanes && lane + e < t.rows; e++)
        for (long d = 0; d < size; d += kLanes) {
          float* p = t.result + (lane + e) * size + d;
          store(p, factor[e] * load(p));
        }
    }
    store(t.top + lane, top);
    store(t.total + lane, total);
  }
  multiply<true>(t.rows, size / kLanes, keys, {s, t.lanes}, rows_of(v), t.result, size, !first,
                 ahead);
}

// Divides and writes the result rows and their log2-sum-exp2, `lse_row` elements apart.
template <class T>
static inline void finish(const QueryTile& t, T* out, long out_row, float* lse, long lse_row) {
  const long size = padded(t.width);
  for (long lane = 0; lane < t.lanes; lane += kLanes) {
    const vec total = load(t.total + lane);
    store(t.top + lane, load(t.top + lane) + log2(total));
    store(t.total + lane, 1.0f / total);
  }
  for (long i = 0; i < t.rows; i++) {
    write_rows(t.result + i * size, 1, t.width, t.total[i], out + i * out_row, out_row);
    lse[i * lse_row] = t.top[i];
  }
}

struct GradTile {       // a QueryTile's backward; everything but dq is read
  long rows, lanes, width;
  Left q, grad;         // as they are
  const float *qt, *gradt;  // panels of scale * log2(e) * q, and of grad
  const float *lse, *delta;  // [lanes]
  float* dq;            // [rows, padded(width)], without the scale
};

// The gradient of a tile's results, its panels, and delta = sum(grad * out).
template <class T>
static inline Left read_grads(const T* grad, long grad_row, const T* out, long out_row,
                              const float* lse, long lse_row, long rows, long lanes, long width,
                              float* to, float* panels, float* to_lse, float* delta) {
  const Left read = read_rows(grad, grad_row, rows, width, to);
  read_panels(read.p, read.row, rows, width, 1.0f, panels);
  for (long i = 0; i < lanes; i++) {
    to_lse[i] = i < rows ? lse[i * lse_row] : 0.0f;
    delta[i] = 0.0f;
    if (i >= rows) continue;
    vec sum = {};
    for (long d = 0; d < width; d += kLanes)
      sum += load_some(read.p + i * read.row + d, (int)least(width - d, kLanes)) *
             load_some(out + i * out_row + d, (int)least(width - d, kLanes));
    for (int e = 0; e < kLanes; e++) delta[i] += sum[e];
  }
  return read;
}

// One chunk of keys: dk (without the scale) and dv are written, or added to if `add`; dq is
// written by the first chunk of its tile. s and ds: room for keys * lanes numbers each.
static inline void differentiate_chunk(const GradTile& t, Left k, Left v, long keys,
                                       float* s, float* ds, float* dk, float* dv, bool first,
                                       bool add, Band band, long key, long query,
                                       Ahead* ahead = nullptr) {
  const long size = padded(t.width), vectors = t.lanes / kLanes;
  multiply<false>(keys, vectors, t.width, k, panels_of(t.qt, t.width), s, t.lanes, false,
                  ahead);
  multiply<false>(keys, vectors, t.width, v, panels_of(t.gradt, t.width), ds, t.lanes, false,
                  ahead);
  outside(band, keys, key, t.lanes, query, [&](long j, long lane, ivec banned) {
    float* p = s + j * t.lanes + lane;
    store(p, banned ? all(kBanned) : load(p));
  });
  for (long lane = 0; lane < t.lanes; lane += kLanes) {
    const vec lse = load(t.lse + lane), delta = load(t.delta + lane);
    for (long i = lane; i < keys * t.lanes; i += t.lanes) {
      const vec weight = exp2(load(s + i) - lse);
      store(s + i, weight);
      store(ds + i, weight * (load(ds + i) - delta));
    }
  }
  multiply<true>(t.rows, size / kLanes, keys, {ds, t.lanes}, rows_of(k), t.dq, size, !first);
  multiply<false>(keys, size / kLanes, t.rows, {ds, t.lanes}, rows_of(t.q), dk, size, add);
  multiply<false>(keys, size / kLanes, t.rows, {s, t.lanes}, rows_of(t.grad), dv, size, add);
}

}  // namespace KUNLUN_ISA
