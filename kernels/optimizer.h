// optimizer.h -- one step of SGD or AdamW over a flat array of parameters, with the meaning of
// torch.optim.SGD and torch.optim.AdamW.
//
//   g = grad_scale grad                                          both
//   SGD:    g = g + weight_decay p;  b = momentum b + g;  p = p - lr b    (without momentum: lr g)
//   AdamW:  p = p (1 - lr weight_decay);  m = m + (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g
//   g
//           p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//
// Momentum, m and v start as zeros. Arithmetic is f32; the factors are made in f64 and rounded
// once. With a master copy the step is made on it and `param` is its rounding; without one bf16
// parameters are widened, stepped in f32 and rounded once (torch rounds every operation to bf16).
// Exactness: the same bits on every device, each + with its product one fmaf:
//   SGD    g = fmaf(weight_decay, p, g), b = fmaf(momentum, b, g), p = fmaf(-lr, b, p)
//   AdamW  m = fmaf(1 - beta1, g - m, m), v = fmaf((1 - beta2) g, g, beta2 v),
//          p = fmaf(-step_size, m / (sqrt(v) / correction + eps), p (1 - lr weight_decay))
// Against torch in f32 the difference is a few roundings of each of these terms.
#pragma once

#include "kernels/kernel.h"

#include <math.h>

DECLARATIONS_BEGIN

typedef struct SgdStep {
    int64_t count;
    DType dtype; // of param: DTYPE_F32 or DTYPE_BF16
    double lr, momentum, weight_decay;
    const float *grad;       // [count]
    const float *grad_scale; // [1] device (kernels/elementwise.h: clip_scale), or NULL = 1
    void *param;             // [count]
    float *master;           // [count], or NULL: param is all there is
    float *momentum_buffer;  // [count]; NULL when momentum is 0
} SgdStep;
KERNEL_DECLARE(sgd_step, SgdStep);

typedef struct AdamwStep {
    int64_t count;
    DType dtype;
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step;                // this one's number, from 1
    const int64_t *step_device;  // [1] device: the same for graphs that are replayed, or NULL
    const float *grad;           // [count]
    const float *grad_scale;     // [1] device, or NULL = 1
    void *param;                 // [count]
    float *master;               // [count], or NULL
    float *exp_avg, *exp_avg_sq; // [count] m and v
} AdamwStep;
KERNEL_DECLARE(adamw_step, AdamwStep);

// What AdamW's step of a given number multiplies with, rounded from f64.
typedef struct AdamwFactors {
    float keep;            // 1 - lr weight_decay
    float blend1;          // 1 - beta1
    float beta2, blend2;   // beta2, 1 - beta2
    float step_size;       // lr / (1 - beta1^step)
    float correction, eps; // sqrt(1 - beta2^step)
} AdamwFactors;

#ifdef __CUDACC__
#define OPTIMIZER_INLINE static inline __host__ __device__
#else
#define OPTIMIZER_INLINE static inline
#endif

// 1 - base^exponent, the power by squaring: the same bits everywhere, which the C library's pow
// does not promise. A compiler may fuse a product with a difference, but not with an fma.
OPTIMIZER_INLINE double optimizer_bias_correction(double base, int64_t exponent)
{
    double power = 1.0;
    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2)
            power *= base;
        base *= base;
    }
    return fma(-1.0, power, 1.0);
}

OPTIMIZER_INLINE AdamwFactors adamw_factors(const AdamwStep *args, int64_t step)
{
    AdamwFactors factors;
    factors.keep = (float)fma(-args->lr, args->weight_decay, 1.0);
    factors.blend1 = (float)(1.0 - args->beta1);
    factors.beta2 = (float)args->beta2;
    factors.blend2 = (float)(1.0 - args->beta2);
    factors.step_size = (float)(args->lr / optimizer_bias_correction(args->beta1, step));
    factors.correction = (float)sqrt(optimizer_bias_correction(args->beta2, step));
    factors.eps = (float)args->eps;
    return factors;
}

DECLARATIONS_END
