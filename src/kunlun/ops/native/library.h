// What the library's parts share: arguments as Python packs them, scratch memory, threads.
//
// Fields are 8 bytes each, in the order in which kunlun.ops.native packs them. Strides count
// elements; channels have stride 1. `bf16` tells bfloat16 from float32.
#pragma once
#include <cstdint>

struct Tensor3 {  // [rows, heads, width]
  void* data;
  int64_t row, head;
};

struct GdpaArgs {
  Tensor3 q, k, v, out;               // out: the result, or in the backward its gradient
  Tensor3 dq, dk, dv;                 // backward only
  const int64_t *q_offsets, *kv_offsets;
  const int8_t* activations;          // one code a query head
  int64_t samples, q_rows, kv_rows, heads, kv_heads, width, bf16, threads;
  double scale, out_scale;
};

struct SoftmaxArgs {  // window_attention; and seed_attention, whose q are the seeds
  Tensor3 q, k, v, out, grad;         // grad: of out, backward only
  Tensor3 dq, dk, dv;                 // backward only
  float* lse;                         // log2-sum-exp2, one a row of out and head
  const int64_t* offsets;
  int64_t samples, rows, heads, kv_heads, width, bf16, threads;
  int64_t seeds, window, causal;      // seeds: of seed_attention only
  double scale;
};

struct HstuArgs {
  Tensor3 q, k, v, out;               // out: the result, or in the backward its gradient
  Tensor3 dq, dk, dv;                 // backward only
  const void* time;                   // seconds [rows], float64 if time_f64
  const float *position_bias, *time_bias;
  double *d_position, *d_time;        // backward only
  const int64_t* offsets;
  int64_t samples, rows, heads, width, bf16, threads;
  int64_t positions, times, time_f64, window;
  double scale, out_scale;
};

struct NormArgs {  // rows [rows, width]; norm.h says what each tensor is on each way
  Tensor3 x, u, y, out;
  float* rstd;
  int64_t rows, width, centered, x_bf16, bf16, threads;  // x_bf16: of x and what has its dtype
  double eps;
};

struct RotaryArgs {
  Tensor3 x;            // [rows, parts, heads, width], or in the backward its gradient
  int64_t x_part;       // its stride between parts
  const Tensor3* part;  // one a part: results, or gradients of them; behind these in the backward
                        // the turned results
  const float* angle;   // [rows, width / 2]
  int64_t angle_row;
  float* d_angle;       // the same; may be null
  int64_t rows, parts, turned, heads, width, bf16, threads;
};

struct EachArgs {  // of `count` elements side by side; grad: backward only
  const void *x, *grad;
  void* out;
  int64_t count, bf16, threads;
};

struct AdagradArgs {  // weight [table_rows, width], total [table_rows], grad [count, width]
  float *weight, *total;
  const int64_t* rows;  // of the table, one a gradient
  const float* grad;
  int64_t count, width, table_rows, items;  // items: shares of the rows, at most one a thread
  double lr, eps, decay;
};

enum Status : int { kDone = 0, kBadOffsets = 1, kBadKvOffsets = 2, kNoMemory = 3, kBadRows = 4 };

// At least n floats of this thread, aligned to 64 bytes, contents undefined, until the next call;
// nullptr without memory. Kept between calls: fresh pages cost more than the small operators do.
float* scratch(int64_t n);

// The same for what all threads of a call read; apart from any thread's scratch.
float* shared(int64_t n);

// Whether `offsets` [samples + 1] are running sums of lengths that end at `rows`.
bool offsets_fit(const int64_t* offsets, int64_t samples, int64_t rows);

// Calls body(context, item) for items 0 .. items - 1, each once, on at most `threads` threads.
// Items are handed out one after another, so put the long ones first. A false stops the rest.
bool run_items(int64_t items, int64_t threads, bool (*body)(const void*, int64_t),
               const void* context);

// A method of an operator as such a body.
template <class C, bool (C::*method)(int64_t) const>
bool call(const void* context, int64_t item) {
  return (static_cast<const C*>(context)->*method)(item);
}

struct Part {  // rows first .. last - 1 of a sample, counted from its own first row
  int64_t sample, first, last;
};

struct Parts {
  const Part* data;  // valid until this thread's next call; nullptr without memory
  int64_t count;
  int64_t longest;  // rows of the longest sample, in whatever parts
};

// All samples, where several threads share them longest first and in parts of at most `longest`
// rows. An empty sample is a part, too.
Parts parts(const int64_t* offsets, int64_t samples, int64_t longest, int64_t threads);
constexpr int64_t kWhole = INT64_MAX, kPart = 1024;

struct Kernels {
  Status (*gdpa_forward)(const GdpaArgs*);
  Status (*gdpa_backward)(const GdpaArgs*);
  Status (*window_forward)(const SoftmaxArgs*);
  Status (*window_backward)(const SoftmaxArgs*);
  Status (*seed_forward)(const SoftmaxArgs*);
  Status (*seed_backward)(const SoftmaxArgs*);
  Status (*hstu_forward)(const HstuArgs*);
  Status (*hstu_backward)(const HstuArgs*);
  Status (*norm_forward)(const NormArgs*);
  Status (*norm_backward)(const NormArgs*);
  Status (*add_norm_forward)(const NormArgs*);
  Status (*add_norm_backward)(const NormArgs*);
  Status (*rotary_forward)(const RotaryArgs*);
  Status (*rotary_backward)(const RotaryArgs*);
  Status (*gelu)(const EachArgs*);
  Status (*adagrad)(const AdagradArgs*);
};

// What a set with bfloat16 instructions does better than the best of the others; and only that.
struct Bf16Kernels {
  Status (*gdpa_forward)(const GdpaArgs*);
  Status (*gdpa_backward)(const GdpaArgs*);
};
