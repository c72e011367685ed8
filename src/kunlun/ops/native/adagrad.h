// Row-wise Adagrad on the rows of a table that a batch has used, one pass over their gradients.
//
// Rows that occur more than once are chained in the order of their occurrence, so that every sum,
// and with it every bit, is the same on any number of threads.
#pragma once
#include "library.h"
#include "norm.h"
#include "product.h"

namespace KUNLUN_ISA {

struct Adagrad {
  const AdagradArgs& a;

  struct Row {
    int64_t row, first, last;  // its occurrences, linked by next
  };

  // An item is the rows that fall to it by a hash, about the same number for each thread.
  long share(int64_t row) const { return (uint64_t)row * 0x9E3779B97F4A7C15u >> 32; }

  bool step(int64_t item) const {
    long places = 64;
    while (places < 2 * a.count) places *= 2;
    const long wide = padded(a.width);
    // One growing piece of memory, cut up by hand: next, rows, places, a gradient.
    char* room = reinterpret_cast<char*>(
        scratch((a.count * 8 + (a.count + 1) * sizeof(Row) + places * 4) / 4 + wide));
    if (!room) return false;
    float* sum = reinterpret_cast<float*>(room);
    int64_t* next = reinterpret_cast<int64_t*>(sum + wide);
    Row* rows = reinterpret_cast<Row*>(next + a.count);
    int32_t* place = reinterpret_cast<int32_t*>(rows + a.count + 1);  // 1 + index into rows; 0: free
    memset(place, 0, places * sizeof *place);

    long used = 0;
    for (int64_t i = 0; i < a.count; i++) {
      const long hash = share(a.rows[i]);
      if (a.items > 1 && hash % a.items != item) continue;
      long p = hash & (places - 1);
      while (place[p] && rows[place[p] - 1].row != a.rows[i]) p = (p + 1) & (places - 1);
      next[i] = -1;
      if (place[p]) {
        Row& row = rows[place[p] - 1];
        row.last = next[row.last] = i;
      } else {
        rows[used] = {a.rows[i], i, i};
        place[p] = ++used;
      }
    }
    for (long r = 0; r < used; r++) update(rows[r], next, sum);
    return true;
  }

  void update(const Row& row, const int64_t* next, float* sum) const {
    float *weight = a.weight + row.row * a.width, &so_far = a.total[row.row];
    vec squares = {};
    for (long d = 0; d < a.width; d += kLanes) {
      const int n = (int)least(a.width - d, kLanes);
      vec g = load_some(a.grad + row.first * a.width + d, n);
      for (int64_t i = next[row.first]; i >= 0; i = next[i])
        g += load_some(a.grad + i * a.width + d, n);
      store(sum + d, g);
      squares += g * g;
    }
    so_far += total(squares) / a.width;
    const float step = (float)a.lr / (std::sqrt(so_far) + (float)a.eps);
    const float keep = (float)(1.0 - a.lr * a.decay);
    for (long d = 0; d < a.width; d += kLanes) {
      const int n = (int)least(a.width - d, kLanes);
      store_some(weight + d, keep * load_some(weight + d, n) - step * load(sum + d), n);
    }
  }

  static Status run(const AdagradArgs* a) {
    for (int64_t i = 0; i < a->count; i++)
      if (a->rows[i] < 0 || a->rows[i] >= a->table_rows) return kBadOffsets;
    const Adagrad c = {*a};
    return run_items(a->items, a->items, call<Adagrad, &Adagrad::step>, &c) ? kDone : kNoMemory;
  }
};

static Status adagrad(const AdagradArgs* a) { return Adagrad::run(a); }

}  // namespace KUNLUN_ISA
