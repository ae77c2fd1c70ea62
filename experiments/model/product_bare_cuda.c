// product_bare_cuda.c -- scales where cuBLASLt wants them.
#include "experiments/model/product_bare.h"
#include "kernels/gemm/cublas_product.h"

#include <stdlib.h>

typedef struct Scales {
    CublasScale kind;
    int64_t rows, blocks;         // of the operand
    int64_t row_step, block_step; // floats from one to the next
    uint64_t floats;              // with padding
} Scales;

static bool scales_of(const QTensor *q, Scales *s)
{
    int rows = q->rule.block_rows, columns = q->rule.block_columns;
    *s = (Scales){.rows = qtensor_grid_rows(q), .blocks = qtensor_grid_columns(q)};
    s->row_step = columns == 128 && rows == 1 ? 1 : (s->blocks + 3) / 4 * 4;
    s->block_step = columns == 128 && rows == 1 ? s->rows : 1;
    if (columns == 0) {
        s->kind = rows == 0 ? CUBLAS_SCALE_TENSOR : CUBLAS_SCALE_ROW;
        s->row_step = 1;
    } else {
        s->kind = rows == 1 ? CUBLAS_SCALE_128 : CUBLAS_SCALE_128_128;
    }
    s->floats = (uint64_t)(s->rows * s->row_step + s->blocks * s->block_step);
    return columns == 0 ? rows <= 1 : columns == 128 && (rows == 1 || rows == 128);
}

static const float *lay_out(const QTensor *q, const Scales *s, Arena *arena, Stream stream)
{
    QTensor host = qtensor_on_host(q, stream);
    float *laid = calloc((size_t)s->floats, sizeof(float));
    CHECK(laid != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for %llu scales",
          (unsigned long long)s->floats);
    for (int64_t row = 0; row < s->rows; row++)
        for (int64_t block = 0; block < s->blocks; block++)
            laid[row * s->row_step + block * s->block_step] =
                qtensor_load_block(&host, 0, row, block).scale;
    float *scales = ARENA_PUSH(arena, float, s->floats, MEMORY_SCRATCH);
    device_copy(scales, laid, s->floats * sizeof(float), stream);
    stream_wait(stream);
    free(laid);
    qtensor_host_free(q, &host);
    return scales;
}

static bool is_e4m3(const QuantOperand *o)
{
    return o->quantised && o->q.rule.code == CODE_E4M3 && o->q.rule.method == QUANT_SYMMETRIC &&
           o->q.code_layout == CODES_BYTES;
}

struct ProductBare {
    CublasProduct args;
};

static bool suits(const QuantGemm *p, Scales *a, Scales *b)
{
    return !p->group_rows && p->product == PRODUCT_SCALED && is_e4m3(&p->a) && is_e4m3(&p->b) &&
           scales_of(&p->a.q, a) && scales_of(&p->b.q, b) && p->rows_max > 0 && p->n > 0 &&
           p->k > 0;
}

ProductBare *product_bare_create(const QuantGemm *p, Arena *arena, Stream stream)
{
    Scales a, b;
    if (!suits(p, &a, &b))
        return NULL;
    ProductBare *bare = malloc(sizeof(*bare));
    CHECK(bare != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for a product");
    uint64_t bytes = dtype_bytes(p->out_dtype, (uint64_t)(p->rows_max * p->n));
    bare->args = (CublasProduct){
        .gemm = {.form = GEMM_NT,
                 .dtype = DTYPE_F8_E4M3,
                 .out_dtype = p->out_dtype,
                 .rows = p->rows_max,
                 .n = p->n,
                 .k = p->k,
                 .a = p->a.q.codes,
                 .b = p->b.q.codes,
                 .c = arena_push(arena, bytes, MEMORY_ACTIVATIONS),
                 .workspace = arena_push(arena, DENSE_GEMM_WORKSPACE_BYTES, MEMORY_SCRATCH)},
        .kind_a = a.kind,
        .kind_b = b.kind,
        .scale_a = lay_out(&p->a.q, &a, arena, stream),
        .scale_b = lay_out(&p->b.q, &b, arena, stream),
        .fast_sums = a.kind != CUBLAS_SCALE_128};
    device_fill(bare->args.gemm.c, 0xFF, bytes, stream);
    if (cublas_product(&bare->args, stream))
        return bare;
    product_bare_destroy(bare);
    return NULL;
}

void product_bare_destroy(ProductBare *bare)
{
    free(bare);
}

void product_bare_run(void *bare, Stream stream)
{
    CHECK_RULE(cublas_product(&((const ProductBare *)bare)->args, stream));
}

void *product_bare_c(const ProductBare *bare)
{
    return bare->args.gemm.c;
}
