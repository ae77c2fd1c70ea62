// swiglu.cuh -- the arithmetic of the gated activation on the GPU, eight elements at a time, for
// the kernels with and without a cast of the result.
//
// silu'(g) = s + g s (1 - s) = s (1 + g (1 - s)), s = sigmoid(g).
#pragma once

#include "kernels/cuda_common.cuh"
#include "kernels/swiglu.h"

// Enqueues(stream). With args->cast, which swiglu_casts() knows.
void cast_swiglu_forward(const SwigluForward *args, Stream stream);
void cast_swiglu_backward(const SwigluBackward *args, Stream stream);

// Within 3 ulp: 1 from expf, 1 from the reciprocal, half a step from the sum. (The correctly
// rounded reciprocal has a slow path: 31 instructions an element instead of 18, where memory leaves
// time for 38.) e^-g overflows to infinity for g < -88.7, whose reciprocal 0 is the right value.
__device__ __forceinline__ float sigmoid(float g)
{
    float s;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(__fadd_rn(1.0f, expf(-g))));
    return s;
}

__device__ __forceinline__ bool swiglu_is_padding(const int32_t *row_map, int64_t row)
{
    return row_map && row_map[row] < 0;
}

template <typename T>
__device__ __forceinline__ void forward_group(const Group<T> &gate, const Group<T> &up,
                                              float (&out)[GROUP_ELEMENTS])
{
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS; e++) {
        const float z = group_value(gate, e);
        out[e] = z * sigmoid(z) * group_value(up, e);
    }
}

// What one group of the backward computes; w is the row's routing weight.
struct BackwardGroup {
    float dg[GROUP_ELEMENTS], du[GROUP_ELEMENTS], a_weighted[GROUP_ELEMENTS];
};

// Returns the lane's dweight chain, continued by this group: a rounded as the forward stored it.
template <typename T>
__device__ __forceinline__ float backward_group(const Group<T> &gate, const Group<T> &up,
                                                const Group<T> &grad, int64_t left, float w,
                                                BackwardGroup *out, float dweight)
{
#pragma unroll
    for (int e = 0; e < GROUP_ELEMENTS; e++) {
        const float g = group_value(gate, e), u = group_value(up, e), da = group_value(grad, e);
        const float s = sigmoid(g), silu = g * s;
        // As the forward stores it; without -use_fast_math the products round alike in both
        // kernels.
        const float a = rounded<T>(__fmul_rn(__fmul_rn(g, s), u));
        const float wda = w * da;
        out->dg[e] = wda * u * (s * (1.0f + g * (1.0f - s)));
        out->du[e] = wda * silu;
        out->a_weighted[e] = w * a;
        if (e < left)
            dweight = __fmaf_rn(da, a, dweight);
    }
    return dweight;
}
