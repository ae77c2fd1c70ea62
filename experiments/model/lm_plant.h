// lm_plant.h -- bugs of SEMANTICS.md section 8 that tests plant to see whether the check names
// them.
#pragma once

#include "harness/base.h"

typedef enum LmPlant {
    LM_PLANT_NONE,
    LM_PLANT_EXPERTS_TIMES_EP,   // 1: expert gradients ep times too large
    LM_PLANT_ROUTER_NOT_REDUCED, // 2: the router's gradient not summed over tp
    LM_PLANT_NORM_NOT_REDUCED,   // 2: norm weights not summed over tp under sequence parallelism
    LM_PLANT_UNWRITTEN_ROWS,     // 3: rows behind the last one are NaN and are read
    LM_PLANT_STALE_GATHER,       // 4: a unit is used before its gather is done
    LM_PLANT_LOCAL_LOSS,         // 6: the loss divided by the rank's own token count
    LM_PLANT_CLIP_COPIES,        // 8: copies count again in the clip norm
    LM_PLANT_LOGICAL_BYTES,      // 9: rows for the rank itself are counted as sent
    LM_PLANT_PERMUTED_ROWS,      // rows saved as a plain shard where tp divides them too
    LM_PLANTS,
} LmPlant;
// The same as an option's choices.
#define LM_PLANT_CHOICES                                                                           \
    "none|experts_times_ep|router_not_reduced|norm_not_reduced|unwritten_rows|stale_gather|"       \
    "local_loss|clip_copies|logical_bytes|permuted_rows"
