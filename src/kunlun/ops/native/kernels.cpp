// All kernels for one instruction set; compiled once for each, with KUNLUN_ISA naming it.
#include "gdpa.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

extern const Kernels JOIN(kernels_, KUNLUN_ISA);
const Kernels JOIN(kernels_, KUNLUN_ISA) = {
    KUNLUN_ISA::gdpa_forward, KUNLUN_ISA::gdpa_backward, nullptr, nullptr, nullptr, nullptr};
