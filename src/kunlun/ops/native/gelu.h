// tanh-GELU of every element, and its gradient, one pass each.
#pragma once
#include "activations.h"
#include "library.h"
#include "product.h"

namespace KUNLUN_ISA {

template <class T>
struct EachGelu {
  const EachArgs& a;

  static constexpr long kElements = 1 << 14;  // of an item

  template <class F>
  bool each(int64_t item, F f) const {
    T* out = static_cast<T*>(a.out);
    const T* x = static_cast<const T*>(a.x);
    const long to = least((item + 1) * kElements, a.count);
    for (long i = item * kElements; i < to; i += kLanes) {
      const int n = (int)least(to - i, kLanes);
      store_some(out + i, f(load_some(x + i, n), i, n), n);
    }
    return true;
  }
  bool forward(int64_t item) const {
    return each(item, [](vec x, long, int) { return GeluApprox::value(x); });
  }
  bool backward(int64_t item) const {
    const T* grad = static_cast<const T*>(a.grad);
    return each(item, [grad](vec x, long i, int n) {
      vec slope;
      GeluApprox::both(x, slope);
      return slope * load_some(grad + i, n);
    });
  }

  static Status run(const EachArgs* a) {
    const EachGelu c = {*a};
    const auto body = a->grad ? call<EachGelu, &EachGelu::backward>
                              : call<EachGelu, &EachGelu::forward>;
    run_items((a->count + kElements - 1) / kElements, a->threads, body, &c);
    return kDone;
  }
};

static Status gelu(const EachArgs* a) {
  return a->bf16 ? EachGelu<bfloat16>::run(a) : EachGelu<float>::run(a);
}

}  // namespace KUNLUN_ISA
