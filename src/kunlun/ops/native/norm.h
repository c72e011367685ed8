// Row norms: one pass over the rows each way, statistics in float32.
//
// layer_norm and rms_norm, u = (x - mean) * rstd, and add_rms_norm, s + (u + y) * rstd. Backwards
// read a row's rstd and the result (or u and y), so that the input need not be kept.
#pragma once
#include <cmath>

#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

static inline vec first(vec x, int n) {  // zeros from lane n on
  ivec lane;
  for (int e = 0; e < kLanes; e++) lane[e] = e;
  return lane < n ? x : vec{};
}

// Calls f(channel, channels) for every vector of a row; `Whole` rows end with a whole one.
template <bool Whole, class F>
static inline void across(long width, F f) {
  for (long d = 0; d < width; d += kLanes) f(d, Whole ? kLanes : (int)least(width - d, kLanes));
}

template <class X, class U>  // of the input or s and their gradients; of the result or u and y
struct Norm {
  const NormArgs& a;

  template <class T>
  static T* at(const Tensor3& t, long row) {
    return static_cast<T*>(t.data) + row * t.row;
  }
  long per_item() const { return most(1, (1 << 15) / most(a.width, 1)); }
  template <class F>
  bool rows(int64_t item, F f) const {
    const long from = item * per_item(), to = least(from + per_item(), a.rows);
    for (long row = from; row < to; row++) f(row);
    return true;
  }

  template <bool Whole>
  bool forward(int64_t item) const {
    return rows(item, [&](long row) {
      const X* x = at<X>(a.x, row);
      U* out = at<U>(a.out, row);
      const float share = 1.0f / a.width;
      vec sum = {}, squares = {};
      if (a.centered) across<Whole>(a.width, [&](long d, int n) { sum += load_some(x + d, n); });
      const float mean = a.centered ? sum_of(sum) * share : 0.0f;
      across<Whole>(a.width, [&](long d, int n) {
        vec v = load_some(x + d, n) - mean;
        if (!Whole) v = first(v, n);
        squares += v * v;
      });
      const float rstd = 1.0f / std::sqrt(sum_of(squares) * share + (float)a.eps);
      across<Whole>(a.width, [&](long d, int n) {
        store_some(out + d, (load_some(x + d, n) - mean) * rstd, n);
      });
      a.rstd[row] = rstd;
    });
  }

  template <bool Whole>
  bool backward(int64_t item) const {
    return rows(item, [&](long row) {
      const U *u = at<U>(a.u, row), *grad = at<U>(a.out, row);
      X* dx = at<X>(a.x, row);
      const float share = 1.0f / a.width, rstd = a.rstd[row];
      vec sum = {}, product = {};
      across<Whole>(a.width, [&](long d, int n) {
        const vec g = load_some(grad + d, n);
        sum += g;
        product += g * load_some(u + d, n);
      });
      const float mean = a.centered ? sum_of(sum) * share : 0.0f, along = sum_of(product) * share;
      across<Whole>(a.width, [&](long d, int n) {
        const vec g = load_some(grad + d, n);
        store_some(dx + d, rstd * (g - mean - along * load_some(u + d, n)), n);
      });
    });
  }

  template <bool Whole>
  bool add_forward(int64_t item) const {
    return rows(item, [&](long row) {
      const X* s = at<X>(a.x, row);
      const U *u = at<U>(a.u, row), *y = at<U>(a.y, row);
      X* out = at<X>(a.out, row);
      vec squares = {};
      across<Whole>(a.width, [&](long d, int n) {
        const vec v = load_some(u + d, n) + load_some(y + d, n);
        squares += v * v;
      });
      const float rstd = 1.0f / std::sqrt(sum_of(squares) / a.width + (float)a.eps);
      across<Whole>(a.width, [&](long d, int n) {
        const vec v = load_some(u + d, n) + load_some(y + d, n);
        store_some(out + d, load_some(s + d, n) + v * rstd, n);
      });
      a.rstd[row] = rstd;
    });
  }

  template <bool Whole>
  bool add_backward(int64_t item) const {  // x: the result's gradient, out: that of u and of y
    return rows(item, [&](long row) {
      const X* grad = at<X>(a.x, row);
      const U *u = at<U>(a.u, row), *y = at<U>(a.y, row);
      U* dy = at<U>(a.out, row);
      const float rstd = a.rstd[row];
      vec product = {};
      across<Whole>(a.width, [&](long d, int n) {
        product += load_some(grad + d, n) * (load_some(u + d, n) + load_some(y + d, n));
      });
      const float along = sum_of(product) / a.width * rstd * rstd;
      across<Whole>(a.width, [&](long d, int n) {
        const vec v = load_some(u + d, n) + load_some(y + d, n);
        store_some(dy + d, rstd * (load_some(grad + d, n) - along * v), n);
      });
    });
  }

  template <bool (Norm::*whole)(int64_t) const, bool (Norm::*any)(int64_t) const>
  Status run() const {
    const auto body = a.width % kLanes == 0 ? call<Norm, whole> : call<Norm, any>;
    run_items((a.rows + per_item() - 1) / per_item(), a.threads, body, this);
    return kDone;
  }
};

enum NormWay { kForward, kBackward, kAddForward, kAddBackward };

template <class X, class U>
static Status norm_of(const NormArgs* a, NormWay way) {
  typedef Norm<X, U> N;
  const N n = {*a};
  switch (way) {
    case kForward: return n.template run<&N::template forward<true>, &N::template forward<false>>();
    case kBackward:
      return n.template run<&N::template backward<true>, &N::template backward<false>>();
    case kAddForward:
      return n.template run<&N::template add_forward<true>, &N::template add_forward<false>>();
    default:
      return n.template run<&N::template add_backward<true>, &N::template add_backward<false>>();
  }
}

static Status norm(const NormArgs* a, NormWay way) {
  if (a->x_bf16)
    return a->bf16 ? norm_of<bfloat16, bfloat16>(a, way) : norm_of<bfloat16, float>(a, way);
  return a->bf16 ? norm_of<float, bfloat16>(a, way) : norm_of<float, float>(a, way);
}
static Status norm_forward(const NormArgs* a) { return norm(a, kForward); }
static Status norm_backward(const NormArgs* a) { return norm(a, kBackward); }
static Status add_norm_forward(const NormArgs* a) { return norm(a, kAddForward); }
static Status add_norm_backward(const NormArgs* a) { return norm(a, kAddBackward); }

}  // namespace KUNLUN_ISA
