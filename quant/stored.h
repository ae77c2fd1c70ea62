// stored.h -- a quantised tensor as a checkpoint keeps it: which named parts, of which type and
// shape, and how codes and scales lie in them.
//
// The same description serves reading (parts point into files) and writing (parts have places in
// files to be). A matrix is written and read by slices of rows; stored_row_step says where it may
// be cut so that each slice is one run of bytes in every part.
#pragma once

#include "harness/tensor.h"
#include "quant/quantise.h"
#include "quant/recipe.h"

typedef enum Layout {
    LAYOUT_PLAIN, // nothing quantised: "bf16"
    LAYOUT_TORCHAO,
    LAYOUT_TORCHAO_BIN,
    LAYOUT_COMPRESSED, // compressed-tensors
    LAYOUT_DEEPSEEK,   // DeepSeek's own: weight_scale_inv
    LAYOUTS,
} Layout;
#define LAYOUT_CHOICES "bf16|torchao|torchao-bin|compressed-tensors|deepseek"
const char *layout_name(Layout layout); // Local. As LAYOUT_CHOICES spells it

// How compressed-tensors keeps a weight: its `format`.
typedef enum PackFormat {
    PACK_FLOAT, // float-quantized
    PACK_INT,   // int-quantized
    PACK_WORDS, // pack-quantized: codes of 4 or 8 bits, offset to be positive, in int32 words
    PACK_NVFP4,
    PACK_MXFP4,
    PACK_MXFP8,
    PACK_FORMATS,
} PackFormat;
const char *pack_format_name(PackFormat format); // Local. "float-quantized"

// What the checkpoint layouts make of a recipe. One row per recipe; NULL where a layout has none.
typedef struct Scheme {
    const char *recipe;
    const char *class_name;    // torchao's tensor class
    const char *scheme;        // compressed-tensors' name of it
    PackFormat format;         // there
    const char *as_compressed; // the recipe whose rules describe it there; NULL = itself
    const char *as_torchao;    // likewise, of rows that torchao has under another name
} Scheme;
extern const Scheme scheme_table[];                // ends with a NULL recipe
const Scheme *scheme_find(const char *recipe);     // Local. NULL if absent
bool scheme_has(const Scheme *row, Layout layout); // Local. Whether the layout can keep it as it is
// Local. The row's format, but whole numbers in groups of 128 with quantised activations lie as in
// compressed-tensors' own W4A8 and W4AFP8, one to a byte.
PackFormat scheme_format(const Recipe *recipe);

typedef enum StoredRole {
    STORED_CODES,
    STORED_SCALES,
    STORED_ZEROS,
    STORED_TENSOR_SCALE, // NVFP4's second level
    STORED_INPUT_SCALE,  // NVFP4 in compressed-tensors: of the activations
    STORED_SHAPE,        // pack-quantized: the shape before packing
    STORED_ROLES,
} StoredRole;

typedef struct StoredPart {
    bool present;
    const char *suffix; // "_scale", "weight_scale"
    Tensor tensor;      // data NULL when it is yet to be written
} StoredPart;

typedef struct Stored {
    Recipe recipe;
    Layout layout;
    QTensor q;         // planned, with the layout's layouts; no memory
    bool words;        // codes, and zero points, are packed in int32 words
    bool inverse;      // the second scale is stored as its reciprocal
    float input_scale; // what STORED_INPUT_SCALE holds
    // compressed-tensors' actorder: the group of each column, I32 [columns] in the file, each of
    // them valid; NULL: groups are runs of columns. Such a tensor is read, not written.
    const void *group_of_column;
    StoredPart part[STORED_ROLES];
} Stored;

typedef struct StoredPlan {
    const Recipe *recipe;
    Layout layout;
    int rank;
    const int64_t *shape;
    DType scale_dtype; // DTYPES = the layout's usual
} StoredPlan;
// Local. Error 65 if the recipe does not take the shape, 2 if the layout has no place for it.
bool stored_plan(const StoredPlan *plan, Stored *stored, Error *error);
// Local. The part's full name: "a.b.weight" + CODES = "a.b._weight_qdata" or "a.b.weight_packed".
void stored_part_name(const Stored *stored, StoredRole role, const char *parameter, char *text,
                      size_t bytes);

// Local. Slices of one matrix may be cut at multiples of this many rows; 0: only as a whole.
int64_t stored_row_step(const Stored *stored);

// What of rows is meant: where only places change, codes and scales need not go together.
typedef enum StoredPick { STORED_ALL, STORED_ONLY_CODES, STORED_ALL_BUT_CODES } StoredPick;

// A slice of rows in memory of an arena, on its way to the parts.
typedef struct StoredSlice {
    QTensor q;       // rank 2, the layouts of the parts
    StoredPick pick; // what is filled; as pushed: all
    void *packed, *packed_zeros;
    float tensor_scale;
    int64_t shape[2];
} StoredSlice;
// Local. Not filled; gone when the arena is released.
void stored_slice_push(const Stored *stored, int64_t rows, Arena *arena, StoredSlice *slice);

typedef struct StoredRange {
    StoredRole role;
    uint64_t offset, bytes; // in the part
    const void *data;
} StoredRange;
// Local. What a filled slice puts where; returns how many ranges. Rows are those of the QTensor:
// one matrix of all rows where one scale covers the tensor.
int stored_slice_ranges(const Stored *stored, int64_t matrix, int64_t first, StoredSlice *slice,
                        StoredRange ranges[STORED_ROLES]);

// Local. Reads rows [first, first + count) of a matrix of stored parts into `rows`: planned here
// for that shape with plain scales and row-major codes, its memory from the arena. first must be a
// multiple of the block's rows. With actorder every column is a group of its own there.
void stored_read_rows(const Stored *stored, int64_t matrix, int64_t first, int64_t count,
                      Arena *arena, QTensor *rows);
// Local. The same of codes or scales; pointers to what is not read are NULL.
void stored_pick_rows(const Stored *stored, StoredPick pick, int64_t matrix, int64_t first,
                      int64_t count, Arena *arena, QTensor *rows);
// Local. What those rows stand for, as bf16; the arena is as it was.
void stored_read_values(const Stored *stored, int64_t matrix, int64_t first, int64_t count,
                        Arena *arena, uint16_t *values);
// Local. Puts codes and scales of `from`, as far as it has them, into rows [row, ...) of `to`;
// scales change their type without loss or the caller knows.
void qtensor_copy_rows(const QTensor *from, QTensor *to, int64_t row);
