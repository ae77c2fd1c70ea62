// moe_cost.h -- what each span of a layer's step must move and compute on this rank: the two
// numbers beside every time.
#pragma once

#include "experiments/model/moe.h"
#include "results/result.h"

// Local. The cost of a span by its name ("forward/gemm1"); zeros if unknown.
// Bytes: every operand read once, every result written once; operations: multiply and add are two;
// none for products under a recipe, whose rate no ceiling of the run bounds.
SpanCost moe_span_cost(const Moe *moe, const EpTraffic *traffic, const char *span);
// Local. Sum over the spans of a pass.
SpanCost moe_forward_cost(const Moe *moe, const EpTraffic *traffic);
SpanCost moe_step_cost(const Moe *moe, const EpTraffic *traffic);
