// Row-wise Adagrad on the rows of a table that a batch has used, one pass over their gradients.
//
// Gradients of the same row are chained in the order in which they stand, so that every sum, and
// with it every bit, is the same on any number of threads.
#pragma once
#include <cmath>

#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

struct Adagrad {
  const AdagradArgs& a;
  int64_t* next;  // of each gradient the next one of its row, or -1; one array for all items
  char* room;     // of the items, one after another

  struct Row {
    int64_t row, first, last;  // its gradients, linked by next
  };

  static uint32_t hash(int64_t row) { return (uint64_t)row * 0x9E3779B97F4A7C15u >> 32; }
  // An item takes the rows whose hash starts as it says, and looks them up by how it ends.
  bool mine(uint32_t hash, int64_t item) const { return (uint64_t)hash * a.items >> 32 == item; }
  static long places(const AdagradArgs& a) {  // of the table that finds a row: a power of two
    long n = 64;
    while (n < 2 * a.count) n *= 2;
    return n;
  }
  static long room_each(const AdagradArgs& a) {  // bytes: a gradient, rows, places
    return padded(a.width) * sizeof(float) + a.count * sizeof(Row) + places(a) * sizeof(int32_t);
  }

  bool step(int64_t item) const {
    const long size = places(a);
    float* sum = reinterpret_cast<float*>(room + item * room_each(a));
    Row* rows = reinterpret_cast<Row*>(sum + padded(a.width));
    int32_t* place = reinterpret_cast<int32_t*>(rows + a.count);  // 1 + index into rows; 0: free
    memset(place, 0, size * sizeof *place);

    long used = 0;
    for (int64_t i = 0; i < a.count; i++) {
      const uint32_t key = hash(a.rows[i]);
      if (!mine(key, item)) continue;
      long p = key & (size - 1);
      while (place[p] && rows[place[p] - 1].row != a.rows[i]) p = (p + 1) & (size - 1);
      next[i] = -1;
      if (place[p]) {
        Row& row = rows[place[p] - 1];
        row.last = next[row.last] = i;
      } else {
        rows[used] = {a.rows[i], i, i};
        place[p] = ++used;
      }
    }
    for (long r = 0; r < used; r++) update(rows[r], sum);
    return true;
  }

  void update(const Row& row, float* sum) const {
    float* weight = a.weight + row.row * a.width;
    vec squares = {};
    for (long d = 0; d < a.width; d += kLanes) {
      const int n = (int)least(a.width - d, kLanes);
      vec g = load_some(a.grad + row.first * a.width + d, n);
      for (int64_t i = next[row.first]; i >= 0; i = next[i])
        g += load_some(a.grad + i * a.width + d, n);
      store(sum + d, g);
      squares += g * g;
    }
    float& so_far = a.total[row.row];
    so_far += sum_of(squares) / a.width;
    const float step = (float)a.lr / (std::sqrt(so_far) + (float)a.eps);
    const float keep = (float)(1.0 - a.lr * a.decay);
    for (long d = 0; d < a.width; d += kLanes) {
      const int n = (int)least(a.width - d, kLanes);
      store_some(weight + d, keep * load_some(weight + d, n) - step * load(sum + d), n);
    }
  }

  static Status run(const AdagradArgs* a) {
    if (a->count > INT32_MAX) return kNoMemory;  // what a place can hold
    for (int64_t i = 0; i < a->count; i++)
      if (a->rows[i] < 0 || a->rows[i] >= a->table_rows) return kBadRows;
    // All memory before the first write, so that a table is never left half updated.
    const long chain = (a->count + 1) / 2 * 16;  // bytes of next, up to a multiple of 16
    const long bytes = chain + a->items * room_each(*a);
    char* room = reinterpret_cast<char*>(shared((bytes + 3) / 4));
    if (!room) return kNoMemory;
    const Adagrad c = {*a, reinterpret_cast<int64_t*>(room), room + chain};
    run_items(a->items, a->items, call<Adagrad, &Adagrad::step>, &c);
    return kDone;
  }
};

static Status adagrad(const AdagradArgs* a) { return Adagrad::run(a); }

}  // namespace KUNLUN_ISA
