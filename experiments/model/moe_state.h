// moe_state.h -- what moe.c and moe_backward.c share: the buffers of one layer on one rank.
#pragma once

#include "experiments/model/moe.h"

// The spans of a step, in the order in which they happen; the table in moe.c holds their names and
// costs.
typedef enum MoeSpan {
    MOE_SPAN_FORWARD,
    MOE_SPAN_ROUTER,
    MOE_SPAN_PLAN,     // addressing at the sender
    MOE_SPAN_DISPATCH, // rows out and in, addressing at the receiver
    MOE_SPAN_GEMM1,
    MOE_SPAN_ACTIVATION,
    MOE_SPAN_GEMM2,
    MOE_SPAN_SHARED,
    MOE_SPAN_COMBINE,
    MOE_SPAN_BACKWARD,
    MOE_SPAN_BACK_DISPATCH,
    MOE_SPAN_BACK_GEMM2, // da = dy w2
    MOE_SPAN_BACK_ACTIVATION,
    MOE_SPAN_BACK_GEMM1, // dx = dgu w13
    MOE_SPAN_BACK_COMBINE,
    MOE_SPAN_BACK_WEIGHTS, // dw2, dw13
    MOE_SPAN_BACK_DENSE,   // router and shared expert
    MOE_SPAN_REDUCE,       // gradients over ranks
    MOE_SPANS,
} MoeSpan;

struct Moe {
    MoeSettings settings;
    struct MoeQuant *quant; // NULL without a recipe
    Recorder *recorder;
    int span[MOE_SPANS];
    Ep *ep;
    int64_t router_rows; // columns of logits
    int parts;

    // One group that is all tokens, and one group per virtual rank: what dense products work on.
    // Device memory.
    int32_t *dense_first, *dense_rows; // [1]
    int32_t *part_first, *part_rows;   // [parts]

    float *logits;             // [tokens, router_rows]
    int32_t *expert_of_choice; // [tokens, top_k]
    int32_t *expert_of_slot;   // [tokens, top_k]
    float *weight_of_slot;     // [tokens, top_k]

    void *x_scaled; // [expert_rows_max, hidden], score before the experts only
    void *gu;       // [expert_rows_max, 2 * inner]; in the backward its gradient
    void *a;        // [expert_rows_max, inner]; in the backward da, then the weighted a
    void *out;      // [expert_rows_max, hidden]; in the backward dx per expert row

    float *shared_y; // [tokens, hidden]
    float *gate;     // [tokens], with a shared gate
    void *shared_gu; // [tokens, 2 * shared_inner]
    void *shared_a;  // [tokens, shared_inner]

    float *dweight_of_expert_row; // [expert_rows_max]
    float *dweight_of_slot;       // [tokens, top_k]
    float *dgate;                 // [tokens]
    void *dlogits;                // [tokens, router_rows]
    void *shared_dout;            // [tokens, hidden]
    float *dense_dx;              // [tokens, hidden]
    void *reduce_scratch;
};

// Rows of this rank's experts as the grouped products see them, everything but the operands filled
// in.
GroupedGemm moe_expert_product(const Moe *moe, GemmForm form);
// A dense product over this rank's tokens; TN has one group per part.
GroupedGemm moe_dense_product(const Moe *moe, GemmForm form);
