// What the threads of a GDPA call share out. One item is a sample's rows, or a part of them, and
// some of its key heads: their k and v are brought into the form of products once, then the rows
// are read from top to bottom, a block of rows at a time and all heads of the item in each.
#pragma once
#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

// Bytes of an item's keys in all forms, and in a backward of what is summed for them: a part of the
// second cache.
constexpr long kKeyBytes = 1 << 19;

template <class T>
struct GdpaItems {
  const GdpaArgs& a;
  Parts work;
  long key_bytes;   // of a key, of one head
  long most_heads;  // at most so many key heads an item, so that every thread gets four items
  long slices;      // items of a part: those of the sample with most keys

  static T* at(const Tensor3& t, long row, long head) {
    return static_cast<T*>(t.data) + row * t.row + head * t.head;
  }

  struct Item {
    long group, groups;   // its first key head, and how many
    long q_start, rows, k_start, keys;
  };
  long heads_each() const { return a.heads / a.kv_heads; }
  // Key heads of an item: as many as the cache holds of so many keys, in groups of one size.
  long together(long keys) const {
    const long fit = least(most_heads, most(1, kKeyBytes / (key_bytes * most(keys, kLanes))));
    const long groups = (a.kv_heads + fit - 1) / fit;
    return (a.kv_heads + groups - 1) / groups;
  }
  long items() const { return work.count * slices; }
  // Samples with fewer keys have fewer items, and behind them some of no heads and no rows.
  Item item(int64_t index) const {
    const Part& part = work.data[index / slices];
    const long start = a.kv_offsets[part.sample], keys = a.kv_offsets[part.sample + 1] - start;
    const long some = together(keys), group = index % slices * some;
    if (group >= a.kv_heads) return {};
    return {group, least(some, a.kv_heads - group), a.q_offsets[part.sample] + part.first,
            part.last - part.first, start, keys};
  }

  // The item that this thread is likely to take next; without rows if there is none.
  Item after(int64_t index) const {
    for (int64_t i = index + a.threads; i < items(); i++) {
      const Item next = item(i);
      if (next.groups) return next;
    }
    return {};
  }
  // The rows of the keys of `whose` in two tensors, a share of them for every block of `it`.
  Later<T> keys_over(const Tensor3& x, const Tensor3& y, const Item& whose, const Item& it,
                     long block) const {
    const long blocks = (it.rows + block - 1) / block * it.groups * heads_each();
    return {at(x, whose.k_start, whose.group), at(y, whose.k_start, whose.group), x.row, y.row,
            whose.keys, blocks ? (whose.keys + blocks - 1) / blocks : 0, whose.groups * a.width};
  }

  // Asks for head h's share of the block of rows after the one at row r, of all heads of an item,
  // which are taken to lie side by side.
  void ask_behind(Ahead& ahead, const Tensor3& t, long r, long h, const Item& it, const Item& next,
                  long block) const {
    const bool more = r + block < it.rows;
    const Item& whose = more ? it : next;
    const long row = more ? r + block : 0, share = heads_each();
    ask_share(ahead, at(t, whose.q_start + row, whose.group * share), t.row,
              least(block, whose.rows - row), whose.groups * share * a.width,
              h - it.group * share, it.groups * share);
  }

  // Gradients of k and v are sums over all rows of a sample: a backward leaves it whole.
  static GdpaItems of(const GdpaArgs& a, bool backward, long key_bytes) {
    const Parts work = parts(a.q_offsets, a.samples, backward ? kWhole : kPart, a.threads);
    const long some = a.threads > 1 ? work.count * a.kv_heads / (4 * a.threads) : a.kv_heads;
    GdpaItems items = {a, work, key_bytes, most(1, least(some, a.kv_heads)), 1};
    long longest = 0;
    for (long n = 0; n < a.samples; n++)
      longest = most(longest, a.kv_offsets[n + 1] - a.kv_offsets[n]);
    const long fewest = items.together(longest);
    items.slices = (a.kv_heads + fewest - 1) / fewest;
    return items;
  }
};

}  // namespace KUNLUN_ISA
