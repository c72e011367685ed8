// All kernels for one instruction set; compiled once for each, with KUNLUN_ISA naming it.
#include "adagrad.h"
#include "gdpa.h"
#include "gelu.h"
#include "hstu_attention.h"
#include "norm.h"
#include "rotary.h"
#include "seed_attention.h"
#include "window_attention.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

extern const Kernels JOIN(kernels_, KUNLUN_ISA);
const Kernels JOIN(kernels_, KUNLUN_ISA) = {
    KUNLUN_ISA::gdpa_forward,   KUNLUN_ISA::gdpa_backward, KUNLUN_ISA::window_forward,
    KUNLUN_ISA::window_backward, KUNLUN_ISA::seed_forward,  KUNLUN_ISA::seed_backward,
    KUNLUN_ISA::hstu_forward,    KUNLUN_ISA::hstu_backward,
    KUNLUN_ISA::norm_forward,    KUNLUN_ISA::norm_backward, KUNLUN_ISA::add_norm_forward,
    KUNLUN_ISA::add_norm_backward, KUNLUN_ISA::rotary_forward, KUNLUN_ISA::rotary_backward,
    KUNLUN_ISA::gelu,            KUNLUN_ISA::adagrad};
