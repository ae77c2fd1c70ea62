// weight_report.h -- what a weight of a checkpoint holds, and how it compares with the weight it
// was made from.
#pragma once

#include "experiments/rewrite/values.h"

typedef struct WeightReport {
    uint64_t bytes;
    int64_t codes, nan_codes, zero_codes, saturated_codes; // plain: values
    int64_t scales, nan_scales;
    float scale_min, scale_max; // without NaN; plain: of magnitudes
    float second_min, second_max;
} WeightReport;
// Local. Reads the whole weight.
WeightReport weight_report(const Checkpoint *checkpoint, const Weight *weight);

typedef enum WeightVerdict {
    WEIGHT_SAME,     // what quantising the source gives, byte for byte (plain: the source itself)
    WEIGHT_AS_GOOD,  // other bytes, but no further from the source
    WEIGHT_WRONG,    // further from the source than its recipe is
    WEIGHT_ELSEWHERE // the source has no such weight, or one of another shape
} WeightVerdict;
extern const char *const weight_verdict_names[];

typedef struct WeightComparison {
    WeightVerdict verdict;
    const char *recipe;                     // whose bytes they are
    double max_error, sqnr_db, promised_db; // of finite values
    int64_t nans, promised_nans;
    char changed[96]; // type or shape, where others than the source's
} WeightComparison;
// Local. `tensor` is the weight's place in a list of the source (rewrite_list), which is planned
// and quantised again for it.
WeightComparison weight_compare(const Weight *weight, RewriteValues *values, Rewrite *source,
                                int tensor);
