// qtensor.h -- a quantised tensor: codes, scales, zero points, perhaps a second scale per matrix,
// and the rule that made them. A value: copied freely, its memory belongs to an arena or a file.
//
// It stands for [rows, columns] or [matrices, rows, columns] values (rank 1 is one row); columns
// are the dimension that products sum over. Codes and scales lie as code_layout and scale_layout
// say, outermost the matrix:
//
//   codes   BYTES [m, rows, columns]; PAIRS [m, rows, columns / 2]; TILED [m, rows / 8,
//           columns / 128, 32, 4] words of 8 codes
//   scales  PLAIN [m, block rows, block columns]; SWIZZLED [m, block rows / 128,
//           block columns / 4, 32, 4, 4] with zeros where a tile is not full; TRANSPOSED [m, block
//           columns, block rows]; PAIRED the same with the zero point beside each scale
//   zeros   as the scales
//   tensor_scales  f32 [m]
//
// A block that covers all rows covers all matrices too: fp8_tensor has one scale, whatever the
// rank. Sources: FORMATS of torchao (prototype/mx_formats/utils.py, to_blocked) and of PyTorch
// (aten/src/ATen/native/cuda/int4mm.cu).
#pragma once

#include "harness/arena.h"
#include "quant/rule.h"

DECLARATIONS_BEGIN

enum { QTENSOR_RANK_MAX = 3 };

typedef struct QTensor {
    QuantRule rule;
    DType input; // of the values it stands for: DTYPE_BF16 or DTYPE_F32
    int rank;
    int64_t shape[QTENSOR_RANK_MAX];
    int64_t matrices, rows, columns; // what quantising walks: rank 3 with one block per tensor has
                                     // one matrix of matrices * rows rows
    CodeLayout code_layout;
    ScaleLayout scale_layout;
    void *codes, *scales, *zeros; // zeros: NULL if there are none or they lie beside the scales
    float *tensor_scales;         // NULL without a second level
} QTensor;

// Local. Without memory: data pointers are NULL. Layouts are the rule's; they may be changed before
// sizes are taken. Error 65 names the dimension and the rule that the shape breaks; also for shapes
// whose bytes do not fit 63 bits and for input types other than bf16 and f32.
bool qtensor_plan(const QuantRule *rule, DType input, int rank, const int64_t *shape, QTensor *q,
                  Error *error);

typedef struct QTensorBytes {
    uint64_t codes, scales, zeros, tensor_scales, total;
} QTensorBytes;
QTensorBytes qtensor_bytes(const QTensor *q);                         // Local
void qtensor_push(QTensor *q, Arena *arena, MemoryCategory category); // Local. Not filled
void qtensor_allocate(QTensor *q); // Local. From the heap, host memory: qtensor_free
void qtensor_free(QTensor *q);     // Local
// Waits. What the host reads: q itself where the stream is the CPU's, else a copy of q's device
// memory; qtensor_host_free(q, &host) gives back what was allocated for it.
QTensor qtensor_on_host(const QTensor *q, Stream stream);
void qtensor_host_free(const QTensor *q, QTensor *host); // Local

// Local. Extents with the rule's padding, and of the grid of blocks in one matrix.
int64_t qtensor_padded_rows(const QTensor *q);
int64_t qtensor_padded_columns(const QTensor *q);
int64_t qtensor_block_rows(const QTensor *q);    // the block's own extent
int64_t qtensor_block_columns(const QTensor *q); // likewise
int64_t qtensor_grid_rows(const QTensor *q);
int64_t qtensor_grid_columns(const QTensor *q);
int64_t qtensor_tensor_scales(const QTensor *q); // how many; 0 without a second level

// Local. Where the code of an element starts, in bits; where a block's scale lies, in elements
// (PAIRED: its zero point is the next). 64-bit throughout.
int64_t qtensor_code_bit(const QTensor *q, int64_t matrix, int64_t row, int64_t column);
int64_t qtensor_scale_index(const QTensor *q, int64_t matrix, int64_t block_row,
                            int64_t block_column);
// Local. Elements of the array of scales (PAIRED: of scales and zero points).
int64_t qtensor_scale_elements(const QTensor *q);

// Local, host tensors. One code, one scale or zero point as stored.
uint32_t qtensor_load_code(const QTensor *q, int64_t matrix, int64_t row, int64_t column);
void qtensor_store_code(QTensor *q, int64_t matrix, int64_t row, int64_t column, uint32_t code);
QuantBlock qtensor_load_block(const QTensor *q, int64_t matrix, int64_t block_row,
                              int64_t block_column); // scale and zero as arithmetic wants them
QuantBlock qtensor_load_block_at(const QTensor *q, int64_t scale_index);
void qtensor_store_block(QTensor *q, int64_t matrix, int64_t block_row, int64_t block_column,
                         const QuantBlock *block);
// Local, host tensors. Bytes of scales that no block fills are made 0.
void qtensor_clear_padding(QTensor *q);

// Local. A tensor may be cut along `axis` (of its shape) at multiples of this many elements, so
// that each part is a QTensor with its own codes and scales; a scale that spans the axis goes to
// every part, and so does the tensor's. 0: it cannot be cut there (a block or padding spans it in a
// way that parts could not store).
int64_t qtensor_cut_step(const QTensor *q, int axis);
// Local, host tensors. Copies elements [first, first + count) along axis into `part`, which was
// planned for that shape with the layouts of `q` or others. first and count are multiples of the
// step, or reach the end.
void qtensor_copy_part(const QTensor *q, int axis, int64_t first, QTensor *part);

DECLARATIONS_END
