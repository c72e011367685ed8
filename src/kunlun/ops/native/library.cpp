// The C interface: threads, scratch memory, and the choice of instruction set at run time.
#include "library.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
extern const Kernels kernels_avx512, kernels_avx2;
#endif
#if defined(KUNLUN_HAS_AVX512_BF16)
extern const Bf16Kernels kernels_avx512_bf16;
#endif
#if defined(KUNLUN_HAS_AMX)
extern const Bf16Kernels kernels_amx;
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
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
  if (n < 1) n = 1;  // nothing is needed, which is not the same as no memory
  if (n > scratch.size) {
    free(scratch.data);
    scratch.size = (n + 1023) / 1024 * 1024;
    scratch.data = static_cast<float*>(aligned_alloc(64, scratch.size * sizeof(float)));
    if (!scratch.data) scratch.size = 0;
  }
  return scratch.data;
}

struct Room {
  Part* data = nullptr;
  int64_t size = 0;
  ~Room() { free(data); }
};
thread_local Room t_parts;

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

int longer_first(const void* a, const void* b) {
  auto x = static_cast<const Part*>(a), y = static_cast<const Part*>(b);
  const int64_t more = (y->last - y->first) - (x->last - x->first);
  if (more) return more < 0 ? -1 : 1;
  if (x->sample != y->sample) return x->sample < y->sample ? -1 : 1;
  return x->first < y->first ? -1 : 1;
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

Parts parts(const int64_t* offsets, int64_t samples, int64_t longest, int64_t threads) {
  if (threads <= 1) longest = kWhole;
  int64_t count = 0, most = 0;
  for (int64_t i = 0; i < samples; i++) {
    const int64_t rows = offsets[i + 1] - offsets[i];
    count += rows > longest ? (rows + longest - 1) / longest : 1;
    if (rows > most) most = rows;
  }
  if (count + 1 > t_parts.size) {
    free(t_parts.data);
    t_parts.size = count + 1;
    t_parts.data = static_cast<Part*>(malloc(t_parts.size * sizeof(Part)));
    if (!t_parts.data) t_parts.size = 0;
  }
  Part* to = t_parts.data;
  if (!to) return {nullptr, 0, 0};
  for (int64_t i = 0; i < samples; i++) {
    const int64_t rows = offsets[i + 1] - offsets[i];
    int64_t first = 0;
    for (; rows - first > longest; first += longest) *to++ = {i, first, first + longest};
    *to++ = {i, first, rows};
  }
  if (threads > 1) qsort(t_parts.data, count, sizeof(Part), longer_first);
  return {t_parts.data, count, most};
}

#if defined(__x86_64__)
// AMX state is large, so Linux wants a process to ask for it, once; elsewhere we do not know how.
static bool amx_allowed() {
#if defined(KUNLUN_HAS_AMX) && defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

static int best_avx512() {
  int best = 2;
#if defined(KUNLUN_HAS_AVX512_BF16)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return best;
  // Intel's vdpbf16ps is half as fast as its float32 arithmetic: there it is not worth it.
  if (!__builtin_cpu_is("intel")) best = 3;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return best;
  const bool amx = (d >> 22 & 1) && (d >> 24 & 1);  // bfloat16, tiles
  if (amx && amx_allowed()) best = 4;
#endif
  return best;
}
#endif

#pragma GCC visibility push(default)  // the rest is hidden, see build.py
extern "C" {

// Which sources this was built from; build.py looks for it in the file.
#ifdef KUNLUN_SIGNATURE
__attribute__((used)) extern const char kunlun_signature[];
const char kunlun_signature[] = KUNLUN_SIGNATURE;
#endif

void kunlun_set_parallel(void* gomp_parallel) {
  g_parallel = reinterpret_cast<Parallel>(gomp_parallel);
}

// The instruction sets by number: 0 runs everywhere, 1 is AVX2 with FMA, 2 is AVX-512, 3 has
// vdpbf16ps too, 4 has AMX tiles of bfloat16 besides.
int kunlun_best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return best_avx512();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
    return 1;
#endif
  return 0;
}

static const Kernels& kernels(int isa) {
#if defined(__x86_64__)
  if (isa >= 2) return kernels_avx512;
  if (isa == 1) return kernels_avx2;
#endif
  return kernels_baseline;
}

static const Bf16Kernels* bf16_kernels(int isa) {
#if defined(KUNLUN_HAS_AMX)
  if (isa == 4) return &kernels_amx;
#endif
#if defined(KUNLUN_HAS_AVX512_BF16)
  if (isa == 3) return &kernels_avx512_bf16;
#endif
  return nullptr;
}

// `function` of the instruction set, the bfloat16 one where there is one.
#define CHOOSE(function, isa, a)                                           \
  ((a)->bf16 && bf16_kernels(isa) ? bf16_kernels(isa)->function(a) : kernels(isa).function(a))

int kunlun_gdpa_forward(int isa, const GdpaArgs* a) { return CHOOSE(gdpa_forward, isa, a); }
int kunlun_gdpa_backward(int isa, const GdpaArgs* a) { return CHOOSE(gdpa_backward, isa, a); }
int kunlun_window_forward(int isa, const SoftmaxArgs* a) { return kernels(isa).window_forward(a); }
int kunlun_window_backward(int isa, const SoftmaxArgs* a) {
  return kernels(isa).window_backward(a);
}
int kunlun_seed_forward(int isa, const SoftmaxArgs* a) { return kernels(isa).seed_forward(a); }
int kunlun_seed_backward(int isa, const SoftmaxArgs* a) { return kernels(isa).seed_backward(a); }
int kunlun_hstu_forward(int isa, const HstuArgs* a) { return kernels(isa).hstu_forward(a); }
int kunlun_hstu_backward(int isa, const HstuArgs* a) { return kernels(isa).hstu_backward(a); }
int kunlun_norm_forward(int isa, const NormArgs* a) { return kernels(isa).norm_forward(a); }
int kunlun_norm_backward(int isa, const NormArgs* a) { return kernels(isa).norm_backward(a); }
int kunlun_add_norm_forward(int isa, const NormArgs* a) { return kernels(isa).add_norm_forward(a); }
int kunlun_add_norm_backward(int isa, const NormArgs* a) {
  return kernels(isa).add_norm_backward(a);
}
int kunlun_rotary_forward(int isa, const RotaryArgs* a) { return kernels(isa).rotary_forward(a); }
int kunlun_rotary_backward(int isa, const RotaryArgs* a) { return kernels(isa).rotary_backward(a); }
int kunlun_gelu(int isa, const EachArgs* a) { return kernels(isa).gelu(a); }
int kunlun_adagrad(int isa, const AdagradArgs* a) { return kernels(isa).adagrad(a); }
}
#pragma GCC visibility pop
