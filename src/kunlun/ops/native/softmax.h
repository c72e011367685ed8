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
constexpr long kKept = 1 << 18;  // floats that an item keeps: half of the second cache


// Key j0 + j may be read by query i0 + i where low <= (j0 + j) - (i0 + i) <= high.
struct Band {
  long low, high;
};
constexpr Band kNoBand = {-(1L << 40), 1L << 40};

// Heads that an item of a forward takes at once, since their rows stand side by side in memory: as
// many as kKept allows at `each` floats, and fewer where threads would not get four items each.
static inline long heads_at_once(long heads, long each, long samples, long threads) {
  const long some = threads > 1 ? samples * heads / (4 * threads) : heads;
  return most(1, least(least(heads, kKept / most(1, each)), some));
}

// Of a chunk's keys those that one of `queries` queries from `query` on may read.
static inline Span keys_of(Band band, long keys, long key, long queries, long query) {
  const long from = least(keys, most(0, query + band.low - key));
  return {from, least(keys, most(from, query + queries + band.high - key))};
}
// And of a tile's queries those that may read one of these keys.
static inline Span queries_of(Band band, long queries, long query, long keys, long key) {
  return keys_of({-band.high, -band.low}, queries, query, keys, key);
}

// Scores of a tile, [keys, lanes]: only what the band crosses, in whole vectors.
static inline void score(Band band, long keys, long key, long lanes, long query, Left rows,
                         Right panels, long depth, float* s, Ahead* ahead) {
  const auto part = [&](long lane, long vectors, long from, long to) {
    if (from < to)
      multiply<false>(to - from, vectors, depth, {rows.p + from * rows.row, rows.row},
                      {panels.p + lane * depth, panels.row, panels.panel},
                      s + from * lanes + lane, lanes, false, ahead);
  };
  long lane = 0;
  for (; lane + 2 * kLanes <= lanes; lane += 2 * kLanes) {
    const Span a = keys_of(band, keys, key, kLanes, query + lane);
    const Span b = keys_of(band, keys, key, kLanes, query + lane + kLanes);
    part(lane, 1, a.from, least(a.to, b.from));
    part(lane, 2, b.from, a.to);
    part(lane + kLanes, 1, most(a.to, b.from), b.to);
  }
  if (lane < lanes) {
    const Span a = keys_of(band, keys, key, kLanes, query + lane);
    part(lane, 1, a.from, a.to);
  }
}

// Calls f(row, forbidden lanes) for the scores of a vector of queries that the band crosses.
template <class F>
static inline void edges(Band band, Span r, long key, long query, F f) {
  ivec lane;
  for (int e = 0; e < kLanes; e++) lane[e] = e;
  const long below = least(r.to, query + kLanes - 1 + band.low - key);  // up to here some lanes
  const long above = query + band.high + 1 - key;                       // and from here on
  for (long j = r.from; j < r.to; j++) {
    if (j >= below && (j = most(j, above)) >= r.to) break;
    const long distance = key + j - query;  // of lane 0; lane e is e less
    const int low = (int)most(distance - band.high, -1);
    const int high = (int)least(distance - band.low, kLanes);
    f(j, (ivec)((lane < low) | (lane > high)));
  }
}

// Zeros where `score` left a vector's rows out.
static inline void clear(Span r, long keys, float* column, long row) {
  for (long j = 0; j < r.from; j++) store(column + j * row, vec{});
  for (long j = r.to; j < keys; j++) store(column + j * row, vec{});
}

struct QueryTile {    // `rows` queries in `lanes` lanes; buffers of padded rows and lanes
  long rows, lanes, width;
  const float* qt;    // panels of scale * log2(e) * q
  float *top, *total; // [lanes], the running maximum and sum
  float* result;      // [lanes, padded(width)], not yet divided
};

// Raises the maxima and the sums by a chunk's scores, and makes weights of these.
static inline void weigh(const QueryTile& t, Span r, long lane, float* s, bool first) {
  const long size = padded(t.width);
  vec top = first ? all(kBanned) : load(t.top + lane), before = top;
  vec other = top;
  float *column = s + lane + r.from * t.lanes, *end = s + lane + r.to * t.lanes, *p = column;
  for (; p + t.lanes < end; p += 2 * t.lanes) {
    top = at_least(load(p), top);
    other = at_least(load(p + t.lanes), other);
  }
  if (p < end) top = at_least(load(p), top);
  top = at_least(top, other);
  vec total = {}, rest = {};
  for (p = column; p + t.lanes < end; p += 2 * t.lanes) {
    vec a = exp2(load(p) - top);
    vec b = exp2(load(p + t.lanes) - top);
    store(p, a);
    store(p + t.lanes, b);
    total += a;
    rest += b;
  }
  if (p < end) {
    vec a = exp2(load(p) - top);
    store(p, a);
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
        float* to = t.result + (lane + e) * size + d;
        store(to, factor[e] * load(to));
      }
  }
  store(t.top + lane, top);
  store(t.total + lane, total);
}

// One chunk of keys; s is room for keys * lanes scores.
static inline void read_chunk(const QueryTile& t, Left k, Left v, long keys, float* s, bool first,
                              Band band, long key, long query, Ahead* ahead = nullptr) {
  const long size = padded(t.width);
  score(band, keys, key, t.lanes, query, k, panels_of(t.qt, t.width), t.width, s, ahead);
  for (long lane = 0; lane < t.lanes; lane += kLanes) {
    const Span r = keys_of(band, keys, key, kLanes, query + lane);
    edges(band, r, key, query + lane, [&](long j, ivec banned) {
      float* p = s + j * t.lanes + lane;
      store(p, banned ? all(kBanned) : load(p));
    });
    weigh(t, r, lane, s, first);
    clear(r, keys, s + lane, t.lanes);
  }
  multiply_spans<true>(t.rows, size / kLanes, {s, t.lanes}, rows_of(v), t.result, size, !first,
                       ahead, [=](long row, long rows) {
                         return keys_of(band, keys, key, rows, query + row);
                       });
}

// Divides and writes the result rows and their log2-sum-exp2, `lse_row` elements apart.
template <class T>
static inline void finish(const QueryTile& t, T* out, long out_row, float* lse, long lse_row,
                          bool around) {
  const long size = padded(t.width);
  for (long lane = 0; lane < t.lanes; lane += kLanes) {
    const vec total = load(t.total + lane);
    store(t.top + lane, load(t.top + lane) + log2(total));
    store(t.total + lane, 1.0f / total);
  }
  for (long i = 0; i < t.rows; i++) {
    write_rows(t.result + i * size, 1, t.width, t.total[i], out + i * out_row, out_row, around);
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
  const long size = padded(t.width);
  score(band, keys, key, t.lanes, query, k, panels_of(t.qt, t.width), t.width, s, ahead);
  score(band, keys, key, t.lanes, query, v, panels_of(t.gradt, t.width), t.width, ds, ahead);
  for (long lane = 0; lane < t.lanes; lane += kLanes) {
    const Span r = keys_of(band, keys, key, kLanes, query + lane);
    edges(band, r, key, query + lane, [&](long j, ivec banned) {
      float* p = s + j * t.lanes + lane;
      store(p, banned ? all(kBanned) : load(p));
    });
    const vec lse = load(t.lse + lane), delta = load(t.delta + lane);
    for (long i = lane + r.from * t.lanes; i < r.to * t.lanes; i += t.lanes) {
      const vec weight = exp2(load(s + i) - lse);
      store(s + i, weight);
      store(ds + i, weight * (load(ds + i) - delta));
    }
    clear(r, keys, s + lane, t.lanes);
    clear(r, keys, ds + lane, t.lanes);
  }
  multiply_spans<true>(t.rows, size / kLanes, {ds, t.lanes}, rows_of(k), t.dq, size, !first,
                       nullptr, [=](long row, long rows) {
                         return keys_of(band, keys, key, rows, query + row);
                       });
  const auto readers = [=, queries = t.rows](long row, long rows) {
    return queries_of(band, queries, query, rows, key + row);
  };
  multiply_spans<false>(keys, size / kLanes, {ds, t.lanes}, rows_of(t.q), dk, size, add, nullptr,
                        readers);
  multiply_spans<false>(keys, size / kLanes, {s, t.lanes}, rows_of(t.grad), dv, size, add, nullptr,
                        readers);
}

}  // namespace KUNLUN_ISA
