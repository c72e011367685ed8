// Small matrix products in cache, and bringing rows in and out of the form they take.
//
// A buffer row is zero-padded to whole vectors: `width` channels become `padded(width)`. Panels
// hold a matrix transposed, kLanes columns at a time: [columns / kLanes][depth][kLanes].
#pragma once
#include "vector.h"

namespace KUNLUN_ISA {

static inline long padded(long n) { return (n + kLanes - 1) / kLanes * kLanes; }
static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }

struct Left {  // the left factor: element (m, k) at p[m * row + k], or p[k * row + m] if turned
  const float* p;
  long row;
};
struct Right {  // the right factor: vector v of row k at p[k * row + v * panel]
  const float* p;
  long row, panel;
};
static inline Right rows_of(const float* p, long row) { return {p, row, kLanes}; }
static inline Right rows_of(Left rows) { return {rows.p, rows.row, kLanes}; }
static inline Right panels_of(const float* p, long depth) { return {p, kLanes, depth * kLanes}; }

template <int M, int V, bool Turned>
static inline void tile(Left a, Right b, long depth, float* c, long row, bool add) {
  vec sum[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[m][v] = vec{};
  for (long k = 0; k < depth; k++) {
    vec right[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) right[v] = load(b.p + k * b.row + v * b.panel);
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const float left = Turned ? a.p[k * a.row + m] : a.p[m * a.row + k];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[m][v] += left * right[v];
    }
  }
  // Without it the addresses of all rows are computed early and kept on the stack meanwhile.
  asm("" : "+r"(c), "+r"(row));
#pragma GCC unroll 16
  for (int m = 0; m < M; m++, c += row)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      // Sums of their own, added at the end: errors grow with the blocks, not with the terms.
      float* p = c + v * kLanes;
      store(p, add ? load(p) + sum[m][v] : sum[m][v]);
    }
}

template <int V, bool Turned, int M = kTileRows>
static inline void tile_of(long rows, Left a, Right b, long depth, float* c, long row, bool add) {
  if constexpr (M > 0) {
    if (rows == M) return tile<M, V, Turned>(a, b, depth, c, row, add);
    return tile_of<V, Turned, M - 1>(rows, a, b, depth, c, row, add);
  }
}

// Memory is slow to answer and takes few questions at a time: what comes next is asked for between
// tiles, a few lines each time.
class Ahead {
  static constexpr long kLine = 64;
  static constexpr int kAreas = 8;
  struct Area {
    const char* p;
    long stride, rows, bytes;
  } areas_[kAreas];
  int count_ = 0, current_ = 0;
  long lines_ = 0, at_ = 0, portion_ = 0;

 public:
  // `rows` rows of `width` elements, `stride` elements apart.
  template <class T>
  void add(const T* from, long stride, long rows, long width) {
    if (rows <= 0 || width <= 0 || count_ == kAreas) return;
    const long size = sizeof(T);
    areas_[count_++] = {reinterpret_cast<const char*>(from), stride * size, rows, width * size};
    lines_ += rows * ((width * size + kLine - 1) / kLine);
  }
  // From now on; to be done after `times` calls of ask.
  void spread(long times) { portion_ = times > 0 ? (lines_ + times - 1) / times : 0; }
  void ask() {
    for (long left = portion_; left > 0 && current_ < count_;) {
      Area area = areas_[current_];
      long at = at_;
      for (; left > 0 && area.rows > 0; left--) {
        __builtin_prefetch(area.p + at, 0, 2);
        at += kLine;
        if (at < area.bytes) continue;
        at = 0;
        area.p += area.stride;
        area.rows--;
      }
      areas_[current_] = area;
      at_ = at;
      if (area.rows == 0) current_++;
    }
  }
};

// Asks for a share of rows that all heads of an item will read, `width` elements in all: in the
// order of memory, a page after the other, which a head at a time does not do.
template <class T>
static inline void ask_share(Ahead& ahead, const T* from, long stride, long rows, long width,
                             long turn, long turns) {
  const long each = (rows + turns - 1) / turns, first = turn * each;
  ahead.add(from + first * stride, stride, least(each, rows - first), width);
}

// Rows of two matrices that will be read or written one day, a share of them asked for at a time.
template <class T>
struct Later {
  const T *a, *b;
  long a_row, b_row, left, share, width;

  void add_to(Ahead& ahead) {
    const long n = least(share, left);
    ahead.add(a, a_row, n, width);
    ahead.add(b, b_row, n, width);
    a += n * a_row, b += n * b_row, left -= n;
  }
};

static inline long tiles_of(long rows, long vectors) {
  return (rows + kTileRows - 1) / kTileRows * ((vectors + 1) / 2);
}

struct Span {
  long from, to;
};

// depths(first row, rows): the part of the depth that these rows of the result are made of.
template <int V, bool Turned, class F>
static __attribute__((noinline)) void column(long rows, Left a, Right b, float* c, long row,
                                             bool add, Ahead* ahead, F depths) {
  // Blocks of nearly equal height: a last one of one or two rows would wait for its own sums.
  long blocks = (rows + kTileRows - 1) / kTileRows;
  for (long i = 0, start = 0; i < blocks; i++) {
    long height = (rows - start) / (blocks - i);
    const Span d = depths(start, height);
    Left part = {a.p + start * (Turned ? 1 : a.row) + d.from * (Turned ? a.row : 1), a.row};
    if (ahead) ahead->ask();
    tile_of<V, Turned>(height, part, {b.p + d.from * b.row, b.row, b.panel}, d.to - d.from,
                       c + start * row, row, add);
    start += height;
  }
}

// c [rows, vectors * kLanes] = a b, or += if `add`.
template <bool Turned, class F>
static inline void multiply_spans(long rows, long vectors, Left a, Right b, float* c, long row,
                                  bool add, Ahead* ahead, F depths) {
  long v = 0;
  for (; v + 2 <= vectors; v += 2, b.p += 2 * b.panel, c += 2 * kLanes)
    column<2, Turned>(rows, a, b, c, row, add, ahead, depths);
  if (v < vectors) column<1, Turned>(rows, a, b, c, row, add, ahead, depths);
}

// The same where b has `depth` rows and all count.
template <bool Turned>
static inline void multiply(long rows, long vectors, long depth, Left a, Right b, float* c,
                            long row, bool add, Ahead* ahead = nullptr) {
  multiply_spans<Turned>(rows, vectors, a, b, c, row, add, ahead,
                         [depth](long, long) { return Span{0, depth}; });
}

// Rows of a tensor, `stride` elements apart, into a buffer of padded rows.
template <class T>
static inline void read_rows(const T* from, long stride, long rows, long width, float factor,
                             float* to) {
  const long size = padded(width);
  for (long r = 0; r < rows; r++)
    for (long d = 0; d < width; d += kLanes)
      store(to + r * size + d, factor * load_some(from + r * stride + d, least(width - d, kLanes)));
}

// The rows where they are, if products can take them there, or else in `buffer`. Rows further
// apart than kNear would compete for the same few places of the first cache, which a left factor
// that is read but once or twice does not mind.
constexpr long kNear = 128, kAnywhere = 1L << 40;
template <class T>
static inline Left read_rows(const T* from, long stride, long rows, long width, float* buffer,
                             long apart = kNear) {
  if constexpr (sizeof(T) == 4)
    if (width % kLanes == 0 && stride <= apart) return {from, stride};
  read_rows(from, stride, rows, width, 1.0f, buffer);
  return {buffer, padded(width)};
}

// A tensor of more bytes is out of the second cache before anyone reads it. Written around the
// caches, its memory need not be read first.
constexpr long kAround = 1 << 21;
template <class T>
static inline bool around_caches(long elements) {
  return sizeof(T) == 4 && elements * (long)sizeof(T) > kAround;
}

// Whether rows are made of whole lines of memory; `strides` of floats, any number of them or-ed.
static inline bool whole_lines(const void* p, long strides) {
  return ((uintptr_t)p | 4 * strides) % 64 == 0;
}

// And back; `around` the caches where the rows are made of whole lines of memory.
template <class T>
static inline void write_rows(const float* from, long rows, long width, float factor, T* to,
                              long stride, bool around = false) {
  const long size = padded(width);
  if constexpr (sizeof(T) == 4)
    if (around && whole_lines(to, stride | width)) {
      for (long r = 0; r < rows; r++)
        for (long d = 0; d < width; d += kLanes)
          store_around(to + r * stride + d, factor * load(from + r * size + d));
      return;
    }
  for (long r = 0; r < rows; r++)
    for (long d = 0; d < width; d += kLanes)
      store_some(to + r * stride + d, factor * load(from + r * size + d), least(width - d, kLanes));
}

template <class T>
static inline void write_zeros(T* to, long stride, long rows, long width) {
  for (long r = 0; r < rows; r++)
    for (long d = 0; d < width; d++) to[r * stride + d] = 0;
}

// The rows transposed into panels of depth `width`: row r becomes a lane of panel r / kLanes.
template <class T>
static __attribute__((noinline)) void read_panels(const T* from, long stride, long rows, long width,
                                                  float factor, float* to) {
  for (long r = 0; r < rows; r += kLanes, to += width * kLanes)
    for (long d = 0; d < width; d += kLanes) {
      vec block[kLanes];
      const T* corner = from + r * stride + d;
      const int channels = (int)least(width - d, kLanes), present = (int)least(rows - r, kLanes);
      if (channels == kLanes && present == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) block[i] = factor * load(corner + i * stride);
      } else {
        for (int i = 0; i < kLanes; i++)
          block[i] = i < present ? factor * load_some(corner + i * stride, channels) : vec{};
      }
      transpose(block);
      if (channels == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) store(to + (d + i) * kLanes, block[i]);
      } else {
        for (int i = 0; i < channels; i++) store(to + (d + i) * kLanes, block[i]);
      }
    }
}

}  // namespace KUNLUN_ISA
