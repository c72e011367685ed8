// HSTU's attention: out = out_scale * sum over j <= i of silu(scale * q_i k_j + rab_ij) v_j, where
// rab is one bias by the rows between i and j and one by the time between them, for all heads.
//
// One item is a sample, or in the forward a part of it, and some of its heads: their k and v are
// brought into the form of products once, and the biases of a tile are looked up once for all of
// them. The longer the sample the fewer heads, so that several threads share a long one.
#pragma once
#include "activations.h"
#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

// Entries of a table by index, 16 at a time where two registers hold 32 of them.
struct Table {
  const float* values;
  long count;
#if defined(__AVX512F__)
  __m512 part[4];
  static constexpr long kHeld = 64;
  Table(const float* p, long n) : values(p), count(n) {
    for (int i = 0; i < 4; i++)
      part[i] = (__m512)load_some(p + i * kLanes, (int)most(0, least(n - i * kLanes, kLanes)));
  }
  vec at(ivec index) const {
    if (count > kHeld) return (vec)_mm512_i32gather_ps((__m512i)index, values, 4);
    const __m512i i = (__m512i)index;
    const __m512 low = _mm512_permutex2var_ps(part[0], i, part[1]);
    const __m512 high = _mm512_permutex2var_ps(part[2], i, part[3]);
    return (vec)_mm512_mask_blend_ps(_mm512_test_epi32_mask(i, _mm512_set1_epi32(32)), low, high);
  }
#else
  Table(const float* p, long n) : values(p), count(n) {}
  vec at(ivec index) const {
    vec found;
    for (int e = 0; e < kLanes; e++) found[e] = values[index[e]];
    return found;
  }
#endif
};

// Bucket 0 below a second, then two for every doubling, at most `last`; see ops/time_buckets.py.
static inline ivec time_bucket(vec gap, int32_t last) {
  const ivec half_octave = ((ivec)at_least(gap, all(0.75f)) >> 22) - 253;
  return half_octave > last ? last - ivec{} : half_octave;
}

template <class T>
struct HstuAttention {
  const HstuArgs& a;
  Parts work;
  long forms;      // rows of scratch that a key takes: 2, in the backward 5
  // Backward only: every item's share of the gradients of the tables, and where a sample's begin.
  double* shares;
  int64_t* places;  // [samples + 1]

  static constexpr long kRows = 32;  // queries of a tile; more would meet more keys behind them
  static constexpr long kKeys = 128;  // keys of a tile
  static constexpr long kCached = 1 << 18;  // floats of an item's k and v in all: half a cache
  static constexpr long kCopies = 4;  // of the sums by time: one would wait for itself

  static T* at(const Tensor3& t, long row, long head) {
    return static_cast<T*>(t.data) + row * t.row + head * t.head;
  }

  struct Item {
    long group, heads;      // its first head, and how many
    long start;             // the sample's first row
    long base;              // the first key row it reads, a multiple of kLanes
    long first, last;       // its queries; these three count from the sample's first row
    long keys() const { return last - base; }
  };
  // Heads an item takes: as many as the cache holds at its number of keys, in groups of one size.
  long together(long keys) const {
    const long fit = most(1, kCached / (forms * most(keys, kLanes) * padded(a.width)));
    const long groups = (a.heads + fit - 1) / fit;
    return (a.heads + groups - 1) / groups;
  }
  long groups(long keys) const {
    const long some = together(keys);
    return (a.heads + some - 1) / some;
  }
  // Items of a part: groups of the longest sample. A shorter one has fewer, and items without any.
  long slices() const { return groups(work.longest); }
  long reach() const { return least(a.window, 1L << 40); }
  Item item(int64_t index) const {
    const Part& part = work.data[index / slices()];
    const long base = first_key(part.first), some = together(part.last - base);
    const long group = index % slices() * some;
    return {group, least(some, a.heads - group), a.offsets[part.sample],
            base,  part.first,                   part.last};
  }
  long first_key(long row) const { return most(0, row - reach()) / kLanes * kLanes; }

  struct Tile {
    long row, rows, key, keys, columns;  // columns: keys in whole vectors
  };
  // Calls f for every tile of queries and keys that meet, each query's keys from first to last.
  template <class F>
  void tiles(long row, long rows, F f) const {
    const long end = row + rows;
    for (long key = first_key(row); key < end; key += kKeys) {
      const long keys = least(kKeys, end - key);
      f(Tile{row, rows, key, keys, padded(keys)});
    }
  }
  struct Reach {
    long low, high;  // the keys of a tile that a row reads
  };
  Reach band(const Tile& t, long m) const {
    const long i = t.row + m;
    return {most(0, i - reach() - t.key), least(t.keys, i + 1 - t.key)};
  }

  struct Bias {
    float* positions;  // the table by distance, turned: that of distance d at [rows - 1 - d]
    long rows;
    Table table;
  };
  // Room: positions [rows + kLanes].
  Bias bias(const Item& it, float* positions) const {
    const long rows = it.last;
    for (long d = 0; d < rows; d++)
      positions[rows - 1 - d] = a.position_bias[least(d, a.positions - 1)];
    for (long e = 0; e < kLanes; e++) positions[rows + e] = 0.0f;
    return {positions, rows, Table(a.time_bias, a.times)};
  }
  // Seconds between row i and n rows from j on. What float has no bits for is cut off and not
  // rounded, which might enter the next bucket.
  template <class Seconds>
  static vec gap(const Seconds* times, long i, long j, long n) {
    vec apart;
    if constexpr (sizeof(Seconds) == 4) {
      apart = times[i] - load_some(times + j, (int)n);
    } else {
      typedef double wide __attribute__((vector_size(2 * sizeof(vec))));
      typedef int64_t wide_bits __attribute__((vector_size(2 * sizeof(vec))));
      wide others = {};
      if (n == kLanes) memcpy(&others, times + j, sizeof others);
      else memcpy(&others, times + j, n * sizeof(double));
      const wide_bits kept = (wide_bits)(times[i] - others) & ~((1LL << 29) - 1);
      apart = __builtin_convertvector((wide)kept, vec);
    }
    return (vec)((ivec)apart & 0x7fffffff);
  }
  // rab of a tile, and the buckets of time if asked for; both [rows, columns], where keys are read.
  template <class Seconds>
  void look_up(const Item& it, const Tile& t, const Bias& b, float* rab, int32_t* buckets) const {
    const Seconds* times = static_cast<const Seconds*>(a.time) + it.start;
    for (long m = 0; m < t.rows; m++) {
      const Reach read = band(t, m);
      const long i = t.row + m;
      for (long c = read.low / kLanes * kLanes; c < read.high; c += kLanes) {
        const long j = t.key + c, there = least(it.last - j, kLanes);
        const ivec bucket = time_bucket(gap(times, i, j, there), (int32_t)a.times - 1);
        store(rab + m * t.columns + c,
              b.table.at(bucket) + load(b.positions + b.rows - 1 - i + j));
        if (buckets) memcpy(buckets + m * t.columns + c, &bucket, sizeof bucket);
      }
    }
  }
  void look_up(const Item& it, const Tile& t, const Bias& b, float* rab,
               int32_t* buckets = nullptr) const {
    if (a.time_f64) look_up<double>(it, t, b, rab, buckets);
    else look_up<float>(it, t, b, rab, buckets);
  }

  // Calls f(offset, lanes outside the band) for the vectors of a tile that hold a pair, and clears
  // the others of the buffers.
  template <class F>
  void each(const Tile& t, float* s, float* ds, F f) const {
    ivec lane;
    for (int e = 0; e < kLanes; e++) lane[e] = e;
    for (long m = 0; m < t.rows; m++) {
      const Reach read = band(t, m);
      for (long c = 0; c < t.columns; c += kLanes) {
        const long at = m * t.columns + c;
        if (c >= read.high || c + kLanes <= read.low) {
          store(s + at, vec{});
          if (ds) store(ds + at, vec{});
          continue;
        }
        f(at, (ivec)((lane < (int)most(read.low - c, -1)) |
                     (lane >= (int)least(read.high - c, kLanes))));
      }
    }
  }

  bool forward(int64_t index) const {
    const Item it = item(index);
    if (it.last == it.first || it.heads <= 0) return true;
    const long width = a.width, size = padded(width), keys = padded(it.keys());
    const long one = keys * (width + size);  // of a head
    float* kt = scratch(it.heads * (one + 2 * kRows * size) + 2 * kRows * kKeys + it.last + kLanes);
    if (!kt) return false;
    float *q = kt + it.heads * one, *o = q + it.heads * kRows * size;
    float *s = o + it.heads * kRows * size, *rab = s + kRows * kKeys;
    for (long h = 0; h < it.heads; h++) {
      const long row = it.start + it.base, head = it.group + h;
      read_panels(at(a.k, row, head), a.k.row, it.keys(), width, (float)a.scale, kt + h * one);
      read_rows(at(a.v, row, head), a.v.row, it.keys(), width, (float)a.out_scale,
                kt + h * one + keys * width);
    }
    const Bias b = bias(it, rab + kRows * kKeys);
    for (long r = it.first; r < it.last; r += kRows) {
      const long rows = least(kRows, it.last - r);
      for (long h = 0; h < it.heads; h++)
        read_rows(at(a.q, it.start + r, it.group + h), a.q.row, rows, width, 1.0f,
                  q + h * kRows * size);
      tiles(r, rows, [&](const Tile& t) {
        look_up(it, t, b, rab);
        for (long h = 0; h < it.heads; h++) {
          const float *panels = kt + h * one, *values = panels + keys * width;
          const long key = t.key - it.base;
          multiply<false>(rows, t.columns / kLanes, width, {q + h * kRows * size, size},
                          panels_of(panels + key * width, width), s, t.columns, false);
          each(t, s, nullptr, [&](long i, ivec outside) {
            const vec weight = Silu::value(load(s + i) + load(rab + i));
            store(s + i, outside ? vec{} : weight);
          });
          multiply<false>(rows, size / kLanes, t.keys, {s, t.columns},
                          rows_of(values + key * size, size), o + h * kRows * size, size,
                          t.key > first_key(r));
        }
      });
      for (long h = 0; h < it.heads; h++)
        write_rows(o + h * kRows * size, rows, width, 1.0f, at(a.out, it.start + r, it.group + h),
                   a.out.row);
    }
    return true;
  }

  bool backward(int64_t index) const {
    const Item it = item(index);
    if (it.last == it.first || it.heads <= 0) return true;
    const long width = a.width, size = padded(width), keys = padded(it.last);
    const long one = keys * (2 * width + 3 * size);  // of a head
    const long block = kRows * size, scores = kRows * kKeys;
    float* kt = scratch(it.heads * (one + 3 * block) + 5 * scores + it.last + kLanes);
    if (!kt) return false;
    float *q = kt + it.heads * one, *grad = q + it.heads * block, *dq = grad + it.heads * block;
    float *s = dq + it.heads * block, *ds = s + scores, *rab = ds + scores, *sum = rab + scores;
    int32_t* buckets = reinterpret_cast<int32_t*>(sum + scores);
    for (long h = 0; h < it.heads; h++) {
      float* to = kt + h * one;
      const T *k = at(a.k, it.start, it.group + h), *v = at(a.v, it.start, it.group + h);
      read_panels(k, a.k.row, it.last, width, (float)a.scale, to);
      read_panels(v, a.v.row, it.last, width, (float)a.out_scale, to + keys * width);
      read_rows(k, a.k.row, it.last, width, 1.0f, to + 2 * keys * width);
      float* sums = to + keys * (2 * width + size);  // dk, then dv
      for (long i = 0; i < 2 * keys * size; i += kLanes) store(sums + i, vec{});
    }
    const Bias b = bias(it, sum + 2 * scores);
    const Shares share = shares_of(it, index);
    for (long r = 0; r < it.last; r += kRows) {
      const long rows = least(kRows, it.last - r);
      for (long h = 0; h < it.heads; h++) {
        const long row = it.start + r, head = it.group + h;
        read_rows(at(a.q, row, head), a.q.row, rows, width, 1.0f, q + h * block);
        read_rows(at(a.out, row, head), a.out.row, rows, width, 1.0f, grad + h * block);
      }
      tiles(r, rows, [&](const Tile& t) {
        look_up(it, t, b, rab, buckets);
        const long columns = t.columns, vectors = columns / kLanes;
        for (long h = 0; h < it.heads; h++) {
          const float *panels = kt + h * one + t.key * width, *vt = panels + keys * width;
          const float* k = kt + h * one + 2 * keys * width + t.key * size;
          float *dk = kt + h * one + keys * (2 * width + size) + t.key * size;
          float* dv = dk + keys * size;
          const Left query = {q + h * block, size}, outer = {grad + h * block, size};
          multiply<false>(rows, vectors, width, query, panels_of(panels, width), s, columns, false);
          multiply<false>(rows, vectors, width, outer, panels_of(vt, width), ds, columns, false);
          each(t, s, ds, [&](long i, ivec outside) {
            vec slope;
            const vec weight = Silu::both(load(s + i) + load(rab + i), slope);
            const vec down = outside ? vec{} : slope * load(ds + i);
            store(s + i, outside ? vec{} : weight);
            store(ds + i, down);
            store(sum + i, h == 0 ? down : load(sum + i) + down);
          });
          multiply<false>(rows, size / kLanes, t.keys, {ds, columns}, rows_of(k, size),
                          dq + h * block, size, t.key > first_key(r));
          multiply<true>(t.keys, size / kLanes, rows, {ds, columns}, rows_of(query), dk, size,
                         true);
          multiply<true>(t.keys, size / kLanes, rows, {s, columns}, rows_of(outer), dv, size, true);
        }
        collect(t, sum, buckets, share);
      });
      for (long h = 0; h < it.heads; h++)
        write_rows(dq + h * block, rows, width, (float)a.scale,
                   at(a.dq, it.start + r, it.group + h), a.dq.row);
    }
    for (long h = 0; h < it.heads; h++) {
      const float* dk = kt + h * one + keys * (2 * width + size);
      write_rows(dk, it.last, width, (float)a.scale, at(a.dk, it.start, it.group + h), a.dk.row);
      write_rows(dk + keys * size, it.last, width, (float)a.out_scale,
                 at(a.dv, it.start, it.group + h), a.dv.row);
    }
    return true;
  }

  // What an item adds to the tables' gradients: by distance [rows], by bucket [kCopies, times].
  struct Shares {
    double *by_distance, *by_bucket;
  };
  long share_size(long rows) const { return rows + kCopies * a.times; }
  Shares shares_of(const Item& it, int64_t index) const {
    double* p = shares + places[work.data[index / slices()].sample];
    p += index % slices() * share_size(it.last);
    for (long i = 0; i < share_size(it.last); i++) p[i] = 0.0;
    return {p, p + it.last};
  }
  void collect(const Tile& t, const float* sum, const int32_t* buckets, const Shares& to) const {
    float diagonal[kRows + kKeys + kLanes] = {};  // key c of row m at c + rows - 1 - m
    for (long m = 0; m < t.rows; m++) {
      const Reach read = band(t, m);
      const float* row = sum + m * t.columns;
      float* turned = diagonal + t.rows - 1 - m;
      for (long c = read.low / kLanes * kLanes; c < read.high; c += kLanes)
        store(turned + c, load(turned + c) + load(row + c));
      const int32_t* bucket = buckets + m * t.columns;
      for (long c = read.low; c < read.high; c++)
        to.by_bucket[c % kCopies * a.times + bucket[c]] += row[c];
    }
    const long furthest = t.row + t.rows - 1 - t.key;  // the distance at diagonal[0]
    for (long d = 0; d <= furthest && d < t.rows + t.keys - 1; d++)
      to.by_distance[furthest - d] += diagonal[d];
  }
  long shares_size(long sample) const {
    const long rows = a.offsets[sample + 1] - a.offsets[sample];
    return rows ? groups(rows) * share_size(rows) : 0;
  }
  bool make_room_for_shares() {
    long count = 0;
    for (long n = 0; n < a.samples; n++) count += shares_size(n);
    shares = reinterpret_cast<double*>(shared(2 * (count + a.samples + 1)));
    if (!shares) return false;
    places = reinterpret_cast<int64_t*>(shares + count);
    places[0] = 0;
    for (long n = 0; n < a.samples; n++) places[n + 1] = places[n] + shares_size(n);
    return true;
  }
  // Every sample's share, one after another.
  void add_shares() const {
    for (long p = 0; p < a.positions; p++) a.d_position[p] = 0.0;
    for (long q = 0; q < a.times; q++) a.d_time[q] = 0.0;
    for (long n = 0; n < a.samples; n++) {
      const long rows = a.offsets[n + 1] - a.offsets[n];
      const double *share = shares + places[n], *end = shares + places[n + 1];
      for (; share < end; share += share_size(rows)) {
        for (long d = 0; d < rows; d++) a.d_position[least(d, a.positions - 1)] += share[d];
        for (long i = 0; i < kCopies * a.times; i++) a.d_time[i % a.times] += share[rows + i];
      }
    }
  }

  static Status run(const HstuArgs* a, bool backward) {
    // Neighbouring queries add to the gradients of the same keys: a backward is not cut.
    HstuAttention c = {*a, parts(a->offsets, a->samples, backward ? kWhole : kPart, a->threads),
                       backward ? 5 : 2, nullptr, nullptr};
    if (!c.work.data || (backward && !c.make_room_for_shares())) return kNoMemory;
    const auto body = backward ? call<HstuAttention, &HstuAttention::backward>
                               : call<HstuAttention, &HstuAttention::forward>;
    if (!run_items(c.work.count * c.slices(), a->threads, body, &c)) return kNoMemory;
    if (backward) c.add_shares();
    return kDone;
  }
};

static Status hstu(const HstuArgs* a, bool backward) {
  if (!offsets_fit(a->offsets, a->samples, a->rows)) return kBadOffsets;
  return a->bf16 ? HstuAttention<bfloat16>::run(a, backward)
                 : HstuAttention<float>::run(a, backward);
}
static Status hstu_forward(const HstuArgs* a) { return hstu(a, false); }
static Status hstu_backward(const HstuArgs* a) { return hstu(a, true); }

}  // namespace KUNLUN_ISA
