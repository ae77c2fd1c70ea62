// cast.h -- values into the codes and scales of a recipe's operand, at the speed of memory.
//
// The bytes are those of quantise() (quant/quantise.h), which is the reference. A tensor whose one
// scale needs its largest element (fp8_tensor, nvfp4) is read twice, unless the caller knows the
// amax already; every other operand is read once: a band of block rows stays in the cache, or on
// the GPU a block in registers, between its statistics and its codes. So is a pair of a cast and
// its transposed one, unless a scale spans a column of the values: then they are read twice, the
// transposed one alone once with `marks`.
#pragma once

#include "kernels/kernel.h"
#include "quant/quantise.h"

DECLARATIONS_BEGIN

typedef struct Cast {
    const void *values; // [matrices, rows, columns] of to.input
    const float *amax;  // [quantise_amaxes(&to)], or NULL: measured
    QTensor to;         // planned; codes, scales, ... are written. All zero: not wanted
    QTensor transposed; // likewise, of [matrices, columns, rows]: what products that sum over rows
                        // take. The CPU makes it element by element, as the reference does
    uint32_t *marks;    // [cast_marks(&transposed, its matrices, ..)], scratch; or NULL
    int threads;        // CPU only; 0 = as OpenMP has it
} Cast;
KERNEL_DECLARE(cast, Cast);
// Local. Marks by which a GPU finds, in one reading, scales that span columns of the values; 0
// where none would help. owners: matrices, or groups of one (expert_operand.h).
int64_t cast_marks(const QTensor *transposed, int64_t owners, DeviceKind device);
OPTIONAL_SYMBOL int64_t cast_marks_cuda(const QTensor *transposed, int64_t owners);

// The largest magnitude of some values: the amax of a tensor that is cast in pieces.
typedef struct CastLargest {
    const void *values; // [count]
    DType dtype;        // DTYPE_BF16 or DTYPE_F32
    int64_t count;
    float *amax; // joined with what it holds, 0 before the first piece; NaN if any value is
} CastLargest;
KERNEL_DECLARE(cast_largest, CastLargest);

// One instruction set's loops over a band of block rows. Rows of the table, fastest first.
typedef struct CastBand CastBand;
typedef struct CastLoops {
    const char *name; // "avx512", "avx2", "portable"
    bool (*supported)(void);
    void (*band)(const CastBand *band); // statistics, scales and codes
    float (*amax)(DType dtype, const void *values,
                  int64_t count); // of an even count; NaN if any is
} CastLoops;
// Local. NULL past the end; cast_loops_best is the first that this CPU supports.
const CastLoops *cast_loops_row(int index);
const CastLoops *cast_loops_best(void);
// Local. cast_cpu with a given row; NULL: the reference.
void cast_with_loops(const Cast *args, const CastLoops *loops);
// Local. Whether such loops exist for this operand; else casts of it are the reference's.
bool cast_is_fast(const QTensor *to);

DECLARATIONS_END
