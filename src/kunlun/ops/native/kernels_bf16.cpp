// The bfloat16 operators on instructions made for it; compiled once for each such set, with
// KUNLUN_ISA naming it.
#include "gdpa_bf16.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

extern const Bf16Kernels JOIN(kernels_, KUNLUN_ISA);
const Bf16Kernels JOIN(kernels_, KUNLUN_ISA) = {KUNLUN_ISA::gdpa_forward,
                                                KUNLUN_ISA::gdpa_backward};
