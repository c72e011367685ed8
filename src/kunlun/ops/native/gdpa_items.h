// What the threads of a GDPA call share out. One item is a sample's rows, or a part of them, and
// some of its key heads: their k and v are brought into the form of products once, then the rows
// are read from top to bottom, a block of rows at a time and all heads of the item in each.
#pragma once
#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

constexpr long kCached = 1 << 19;  // bytes of an item's k and v in all: a part of the second cache

template <class T>
struct GdpaItems {
  const GdpaArgs& a;
  Parts work;
  long together;  // key heads an item

  static T* at(const Tensor3& t, long row, long head) {
    return static_cast<T*>(t.data) + row * t.row + head * t.head;
  }

  struct Item {
    long group, groups;   // its first key head, and how many
    long q_start, rows, k_start, keys;
  };
  long heads_each() const { return a.heads / a.kv_heads; }
  long slices() const { return (a.kv_heads + together - 1) / together; }
  long items() const { return work.count * slices(); }
  Item item(int64_t index) const {
    const Part& part = work.data[index / slices()];
    const long group = index % slices() * together, keys = a.kv_offsets[part.sample];
    return {group, least(together, a.kv_heads - group),
            a.q_offsets[part.sample] + part.first, part.last - part.first,
            keys, a.kv_offsets[part.sample + 1] - keys};
  }

  // The item that this thread is likely to take next; without rows if there is none.
  Item after(int64_t index) const {
    return index + a.threads < items() ? item(index + a.threads) : Item{};
  }
  // The rows of `keys` in two tensors, a share of them for every block of `it`.
  Later<T> keys_over(const Tensor3& x, const Tensor3& y, const Item& keys, const Item& it,
                     long block) const {
    const long blocks = (it.rows + block - 1) / block * it.groups * heads_each();
    return {at(x, keys.k_start, keys.group), at(y, keys.k_start, keys.group), x.row, y.row,
            keys.keys, blocks ? (keys.keys + blocks - 1) / blocks : 0, keys.groups * a.width};
  }

  struct Block {  // of rows of q, and a head
    long row, rows, head;
  };
  // What is read after the block at row r of an item and head h.
  Block behind(long r, long h, const Item& it, const Item& next, long block) const {
    const long first = it.group * heads_each(), last = first + it.groups * heads_each();
    if (h + 1 < last) return {it.q_start + r, least(block, it.rows - r), h + 1};
    r += block;
    if (r < it.rows) return {it.q_start + r, least(block, it.rows - r), first};
    return {next.q_start, least(block, next.rows), next.group * heads_each()};
  }

  // As many key heads as the cache holds, at the batch's mean number of keys, of which a head takes
  // `bytes` for each channel. Gradients of k and v are sums over all rows of a sample: a backward
  // leaves it whole.
  static GdpaItems of(const GdpaArgs& a, bool backward, long bytes) {
    const long mean = a.samples ? (a.kv_rows + a.samples - 1) / a.samples : 0;
    const long each = bytes * most(mean, kLanes) * padded(a.width);
    const long longest = backward ? kWhole : kPart;
    return {a, parts(a.q_offsets, a.samples, longest, a.threads),
            least(a.kv_heads, most(1, kCached / each))};
  }
};

}  // namespace KUNLUN_ISA
