// moe_quant.h -- the experts' products of a layer under a recipe. Router and shared expert stay in
// the layer's own type.
//
// Every product is an NT product (kernels/quant_gemm.h): both operands lie along the sum, and that
// is the direction in which each scale spans.
//
//   product              left operand              right operand            sum over
//   forward  y           x, a: activations' rule   w: weights' rule         columns of w
//   backward da, dx      dy, dgu: activations'     w^T: weights'            rows of w
//   backward dw2, dw13   dy^T, dgu^T: activations' (w a)^T, x^T: activations'  rows of the expert
//
//   recipe     a scale of the activations' rule     of the weights' rule     forward and backward
//   fp8_row    a row along the sum                  a row along the sum      amax / 448 in bf16
//   fp8_block  128 elements along the sum           128 x 128                the same
//   mxfp8      32 elements along the sum            32 along the sum         2^n, mode=
//   others     forward only
//
// All codes are rounded to nearest, ties to even. w^T has the activations' lower bound, so that a
// column of zeros is harmless. Rows of an expert stand in (rank, token) order and are counted from
// its first, so blocks of a weight gradient are the same on every EP layout; the last is filled up
// with zeros. On a GPU, where the host does not know the experts' rows, all weight gradients are
// one product whose operands have every expert's terms at a multiple of 128. --exact: the bits of
// the CPU's products (kernels/quant_gemm.h), else tensor cores. One scale for all activations
// (fp8_tensor, nvfp4) is made from the largest magnitude on all ranks, and one for all experts
// (fp8_tensor) likewise. Weights are quantised anew in every step, as in training.
#pragma once

#include "experiments/model/moe.h"
#include "quant/qtensor.h"

typedef enum MoeProduct {
    MOE_PRODUCT_FIRST,  // gu = x w13^T
    MOE_PRODUCT_SECOND, // out = a w2^T
    MOE_PRODUCT_BACK_SECOND,
    MOE_PRODUCT_BACK_FIRST,
    MOE_PRODUCT_WEIGHTS_SECOND,
    MOE_PRODUCT_WEIGHTS_FIRST,
    MOE_PRODUCTS,
} MoeProduct;

typedef struct MoeQuant MoeQuant;

// Local. Error 2: a recipe without a backward where one is wanted; 65: widths that its blocks do
// not divide. Good without a recipe.
bool moe_quant_check(const MoeConfig *config, bool forward_only, Error *error);

// Local. Whether one scale of the activations is made from the rows of all ranks: a reference that
// computes groups of ranks one after another needs MoeSettings.amax then.
bool moe_quant_spans_replicas(const MoeConfig *config);

// Local. The multiple to which rows of an expert must be padded: settings->align or a multiple.
int moe_quant_align(const MoeSettings *settings);

// Local. Work buffers from the layer's arena; NULL without a recipe.
MoeQuant *moe_quant_create(const Moe *moe);
void moe_quant_destroy(MoeQuant *quant);

// Local. The left operand of MOE_PRODUCT_SECOND or _BACK_FIRST where the gated activation before it
// is to cast it in the same pass (kernels/swiglu.h); else NULL: the product casts it.
const QTensor *moe_activation_cast(const Moe *moe, MoeProduct which);

// Collective(all ranks of the layer), Enqueues(stream). The product that `product` describes for
// unquantised operands, under the layer's recipe.
void moe_product(Moe *moe, MoeProduct which, const GroupedGemm *product, Stream stream);
