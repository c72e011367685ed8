// The C interface: threads, scratch memory, and the choice of instruction set at run time.
#include "library.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2;
#endif
extern const Kernels kernels_baseline;

namespace {

struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  ~Scratch() { free(data); }
};
thread_local Scratch t_scratch, t_shared;

float* grow(Scratch& scratch, int64_t n) {
  if (n > scratch.size) {
    free(scratch.data);
    scratch.size = (n + 1023) / 1024 * 1024;
    scratch.data = static_cast<float*>(aligned_alloc(64, scratch.size * sizeof(float)));
    if (!scratch.data) scratch.size = 0;
  }
  return scratch.data;
}

struct Order {
  int64_t* data = nullptr;
  int64_t size = 0;
  ~Order() { free(data); }
};
thread_local Order t_order;

// GOMP_parallel of the OpenMP that torch has loaded already, so that both share one set of threads.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<Parallel> g_parallel{nullptr};

struct Team {
  std::atomic<int64_t> next;
  std::atomic<bool> fine;
  int64_t items;
  bool (*body)(const void*, int64_t);
  const void* context;

  void work() {
    for (int64_t i; fine && (i = next++) < items;)
      if (!body(context, i)) fine = false;
  }
};

int compare(const void* a, const void* b) {
  auto x = static_cast<const int64_t*>(a), y = static_cast<const int64_t*>(b);
  return x[0] < y[0] ? -1 : x[0] > y[0];
}

}  // namespace

float* scratch(int64_t n) { return grow(t_scratch, n); }
float* shared(int64_t n) { return grow(t_shared, n); }

bool offsets_fit(const int64_t* offsets, int64_t samples, int64_t rows) {
  if (offsets[0] != 0 || offsets[samples] != rows) return false;
  for (int64_t i = 0; i < samples; i++)
    if (offsets[i + 1] < offsets[i]) return false;
  return true;
}

bool run_items(int64_t items, int64_t threads, bool (*body)(const void*, int64_t),
               const void* context) {
  const Parallel parallel = g_parallel;
  if (threads > items) threads = items;
  if (threads <= 1 || !parallel) {
    bool fine = true;
    for (int64_t i = 0; fine && i < items; i++) fine = body(context, i);
    return fine;
  }
  Team team = {{0}, {true}, items, body, context};
  parallel([](void* t) { static_cast<Team*>(t)->work(); }, &team, threads, 0);
  return team.fine;
}

const int64_t* work_order(const int64_t* offsets, int64_t samples, int64_t threads) {
  if (2 * samples + 2 > t_order.size) {
    free(t_order.data);
    t_order.size = 2 * samples + 2;
    t_order.data = static_cast<int64_t*>(malloc(t_order.size * sizeof(int64_t)));
    if (!t_order.data) t_order.size = 0;
  }
  int64_t* order = t_order.data;
  if (!order) return nullptr;
  if (threads <= 1) {
    for (int64_t i = 0; i < samples; i++) order[i] = i;
    return order;
  }
  for (int64_t i = 0; i < samples; i++) {  // pairs of (negative length, sample)
    order[2 * i] = offsets[i] - offsets[i + 1];
    order[2 * i + 1] = i;
  }
  qsort(order, samples, 2 * sizeof(int64_t), compare);
  for (int64_t i = 0; i < samples; i++) order[i] = order[2 * i + 1];
  return order;
}

extern "C" {

// Which sources this was built from; build.py looks for it in the file.
#ifdef KUNLUN_SIGNATURE
__attribute__((used)) extern const char kunlun_signature[];
const char kunlun_signature[] = KUNLUN_SIGNATURE;
#endif

void kunlun_set_parallel(void* gomp_parallel) {
  g_parallel = reinterpret_cast<Parallel>(gomp_parallel);
}

// The instruction sets by number: 0 runs everywhere, 1 is AVX2 with FMA, 2 is AVX-512.
int kunlun_best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
    return 1;
#endif
  return 0;
}

static const Kernels& kernels(int isa) {
#if defined(__x86_64__)
  if (isa == 2) return kernels_avx512;
  if (isa == 1) return kernels_avx2;
#endif
  return kernels_baseline;
}

int kunlun_gdpa_forward(int isa, const GdpaArgs* a) { return kernels(isa).gdpa_forward(a); }
int kunlun_gdpa_backward(int isa, const GdpaArgs* a) { return kernels(isa).gdpa_backward(a); }
int kunlun_window_forward(int isa, const SoftmaxArgs* a) { return kernels(isa).window_forward(a); }
int kunlun_window_backward(int isa, const SoftmaxArgs* a) {
  return kernels(isa).window_backward(a);
}
int kunlun_seed_forward(int isa, const SoftmaxArgs* a) { return kernels(isa).seed_forward(a); }
int kunlun_seed_backward(int isa, const SoftmaxArgs* a) { return kernels(isa).seed_backward(a); }
int kunlun_norm_forward(int isa, const NormArgs* a) { return kernels(isa).norm_forward(a); }
int kunlun_norm_backward(int isa, const NormArgs* a) { return kernels(isa).norm_backward(a); }
int kunlun_add_norm_forward(int isa, const NormArgs* a) { return kernels(isa).add_norm_forward(a); }
int kunlun_add_norm_backward(int isa, const NormArgs* a) {
  return kernels(isa).add_norm_backward(a);
}
int kunlun_rotary_forward(int isa, const RotaryArgs* a) { return kernels(isa).rotary_forward(a); }
int kunlun_rotary_backward(int isa, const RotaryArgs* a) { return kernels(isa).rotary_backward(a); }
int kunlun_gelu(int isa, const EachArgs* a) { return kernels(isa).gelu(a); }
}
