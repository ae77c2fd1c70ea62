// quant_gemm.cu -- the CUDA row of quant_gemm: which kernel multiplies what.
//
//   quant_simt     every recipe and shape, the bits of the CPU; f32, odd sizes, other GPUs
//   quant_rows     few rows for each weight: codes become bf16 in registers
//   cuBLASLt       dense: e4m3 under a scale per tensor, per row or per block; bf16
//   quant_hopper   the rest, grouped and dense, and sums over groups: bf16, e4m3 or int8 in the
//                  tensor cores
//
//   operands                                          in the tensor cores            a, b expanded
//   values; int8 with plain rows; mx and nvfp4        bf16: values, or codes, or     to bf16,
//   unless
//                                                     codes times their blocks'      plain
//                                                     scales, which bf16 holds
//   e4m3 with e4m3 or int4, blocks of 128 n or rows   e4m3                           int4 to e4m3
//   int8 or int4, both; blocks likewise               int8                           pairs to int8
//
// Expanding costs a pass over the operand in every call, on memory: for weights of g experts n x k
// at 4 bits about 2.5 g n k bytes beside 2 rows n k operations. Scales that are not f32 in rows
// already are gathered into the workspace.
#include "kernels/expert_operand.h"
#include "kernels/gemm/cublas_product.h"
#include "kernels/gemm/ring.cuh"
#include "kernels/quant_gemm/expand.cuh"
#include "kernels/quant_gemm/rows.cuh"
#include "kernels/quant_gemm/simt.cuh"

enum {
    ALIGN_BYTES = 256,
    FEW_ROWS = 32, // of a group, on average: up to here quant_rows is taken where b would have to
                   // be expanded
};

// What one operand goes through before the tensor cores see it.
typedef struct QuantPrepare {
    bool expand, gather;
    QuantFactors factors; // `of`: the gathered ones are filled in when the workspace is known
    uint64_t units_at, factors_at; // in the workspace
} QuantPrepare;

typedef struct QuantPlan {
    QuantWork work;
    bool fast; // the tensor cores can do it
    QuantUnit unit;
    bool scaled; // expanded codes are multiplied by their blocks' scales
    int64_t block;
    bool b_per_row;
    QuantFinish finish;
    QuantPrepare a, b;
    bool dense;
    CublasScale kind_a, kind_b;
    bool cublas; // knows these scales
    uint64_t cublas_at, workspace_bytes;
} QuantPlan;

// ---- plan ----

static bool powers_or_nv(const QuantRule *rule)
{
    return rule->method == QUANT_MX || rule->method == QUANT_NVFP4;
}

// Block scales of codes that stay codes: no block, or a multiple of 128, and the same or none on
// the other side.
static bool plan_blocks(const QuantGemm *args, QuantPlan *p)
{
    const QuantRule *a = &args->a.q.rule, *b = &args->b.q.rule;
    p->finish = QUANT_FINISH_TIMES;
    if (a->block_columns == 0 && b->block_columns == 0)
        return a->block_rows <= 1 && b->block_rows <= 1;
    const int block = a->block_columns ? a->block_columns : b->block_columns;
    p->finish = QUANT_FINISH_NONE;
    p->block = block;
    p->b_per_row = b->block_rows == 1;
    return block % 128 == 0 && a->block_rows == 1 && (b->block_rows == 1 || b->block_rows == 128) &&
           (b->block_columns == 0 || b->block_columns == block);
}

static bool plan_units(const QuantGemm *args, QuantPlan *p)
{
    const QuantRule *a = &args->a.q.rule, *b = &args->b.q.rule;
    const bool codes_a = args->a.quantised, codes_b = args->b.quantised;
    p->unit = QUANT_UNIT_BF16;
    if (args->dtype != DTYPE_BF16)
        return false;
    if (args->product == PRODUCT_VALUES)
        return true;
    if (args->product == PRODUCT_ROUNDED) {
        p->unit = p->work.whole ? QUANT_UNIT_S8 : QUANT_UNIT_BF16;
        p->finish = QUANT_FINISH_ROUNDED;
        return (!codes_a || a->block_columns == 0) && (!codes_b || b->block_columns == 0);
    }
    if (!codes_a || !codes_b)
        return false;
    if (powers_or_nv(a) && powers_or_nv(b)) {
        p->scaled = true;
        p->finish = p->work.two_levels ? QUANT_FINISH_TENSORS : QUANT_FINISH_NONE;
        return true;
    }
    const bool e4m3 = (a->code == CODE_E4M3 || a->code == CODE_INT4) &&
                      (b->code == CODE_E4M3 || b->code == CODE_INT4);
    p->unit = p->work.whole ? QUANT_UNIT_S8 : QUANT_UNIT_E4M3;
    return (p->work.whole || e4m3) && plan_blocks(args, p) &&
           (p->block == 0 || p->unit == QUANT_UNIT_E4M3 || p->b_per_row);
}

// Whether codes lie in memory as the tensor cores take them.
static bool lies_ready(const QuantOperand *o, QuantUnit unit)
{
    if (!o->quantised)
        return unit == QUANT_UNIT_BF16;
    const bool bytes = o->q.code_layout == CODES_BYTES;
    return bytes && (unit == QUANT_UNIT_E4M3 ? o->q.rule.code == CODE_E4M3
                                             : unit == QUANT_UNIT_S8 && quant_is_whole(o));
}

static uint64_t push(uint64_t *bytes, uint64_t more)
{
    const uint64_t at = *bytes;
    *bytes += (more + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return at;
}

// Factors of an operand: where they lie, or where they will be gathered.
static void plan_factors(const QuantPlan *plan, const QuantView *v, CublasScale kind,
                         QuantPrepare *p, uint64_t *bytes)
{
    const QTensor *q = &v->operand.q;
    const bool one = v->block_rows == INT64_MAX; // scale for all rows
    if (plan->finish == QUANT_FINISH_TENSORS) {
        p->factors = QuantFactors{q->tensor_scales, v->scale_matrix ? 1 : 0, 0, 0};
        return;
    }
    if (!v->codes || plan->scaled || (plan->finish == QUANT_FINISH_NONE && plan->block == 0))
        return;
    const bool ready = q->rule.scale_dtype == DTYPE_F32 && q->scale_layout == SCALES_PLAIN;
    int64_t row = v->grid_columns, block = 1, matrix_rows = v->grid_rows;
    p->gather = !ready;
    if (kind == CUBLAS_SCALE_128) { // rows side by side, which b's own rows want, too
        row = 1;
        block = v->grid_rows;
        p->gather = true;
    } else if (kind == CUBLAS_SCALE_128_128) {
        row = (v->grid_columns + 3) / 4 * 4;
        p->gather = p->gather || row != v->grid_columns;
    }
    const int64_t matrix =
        kind == CUBLAS_SCALE_128 ? matrix_rows * v->grid_columns : matrix_rows * row;
    const int64_t matrices = one ? 1 : q->matrices;
    const bool one_matrix = one || v->scale_matrix == 0; // all groups' scales lie together
    p->factors = QuantFactors{p->gather ? NULL : (const float *)q->scales, one_matrix ? 0 : matrix,
                              one ? 0 : row, v->grid_columns > 1 ? block : 0};
    if (p->gather)
        p->factors_at = push(bytes, (uint64_t)(matrices * matrix) * sizeof(float));
}

static CublasScale cublas_kind(const QuantPlan *p, const QuantView *v)
{
    if (p->unit == QUANT_UNIT_BF16)
        return CUBLAS_SCALE_NONE;
    if (p->block == 0)
        return v->block_rows == INT64_MAX ? CUBLAS_SCALE_TENSOR : CUBLAS_SCALE_ROW;
    return v->block_rows == 128 ? CUBLAS_SCALE_128_128 : CUBLAS_SCALE_128;
}

static int b_matrices(const QuantGemm *args)
{
    return args->sums_over_groups ? 1 : args->groups;
}

static QuantPlan quant_plan(const QuantGemm *args)
{
    QuantPlan p = {};
    p.work = quant_work(args);
    p.fast = !args->bits_of_cpu && plan_units(args, &p);
    if (!p.fast)
        return p;
    const uint64_t unit_bytes = p.unit == QUANT_UNIT_BF16 ? 2 : 1;
    p.dense = !args->group_rows;
    p.kind_a = cublas_kind(&p, &p.work.a);
    p.kind_b = cublas_kind(&p, &p.work.b);
    const bool blocks_suit =
        p.block == 0 ? p.kind_a == p.kind_b
                     : p.block == 128 && args->a.q.rule.block_columns == 128 && !p.b_per_row;
    p.cublas = p.dense && (p.unit == QUANT_UNIT_BF16 ? p.finish == QUANT_FINISH_NONE
                                                     : p.unit == QUANT_UNIT_E4M3 && blocks_suit);
    // Without cuBLASLt a's factors are read where they lie.
    const CublasScale own_a =
        p.cublas || p.kind_a != CUBLAS_SCALE_128 ? p.kind_a : CUBLAS_SCALE_ROW;
    p.a.expand = !lies_ready(&args->a, p.unit);
    p.b.expand = !lies_ready(&args->b, p.unit);
    if (p.a.expand)
        p.a.units_at = push(&p.workspace_bytes, (uint64_t)(args->rows_max * args->k) * unit_bytes);
    if (p.b.expand)
        p.b.units_at =
            push(&p.workspace_bytes, (uint64_t)(b_matrices(args) * args->n * args->k) * unit_bytes);
    plan_factors(&p, &p.work.a, own_a, &p.a, &p.workspace_bytes);
    plan_factors(&p, &p.work.b, p.kind_b, &p.b, &p.workspace_bytes);
    if (p.cublas)
        p.cublas_at = push(&p.workspace_bytes, DENSE_GEMM_WORKSPACE_BYTES);
    return p;
}

uint64_t quant_gemm_workspace_bytes_cuda(const QuantGemm *args)
{
    return quant_plan(args).workspace_bytes + ALIGN_BYTES;
}

// ---- run ----

static void simt_run(const QuantWork *w, cudaStream_t stream)
{
    const int blocks_per_processor = 2; // of 256 threads with at most 128 registers
    const unsigned grid =
        gemm_grid(&w->frame, SIMT_TILE, SIMT_TILE, cuda_processors() * blocks_per_processor);
    if (w->frame.form == GEMM_TN)
        quant_simt<false, GEMM_TN><<<grid, SIMT_THREADS, 0, stream>>>(*w);
    else if (w->whole)
        quant_simt<true, GEMM_NT><<<grid, SIMT_THREADS, 0, stream>>>(*w);
    else
        quant_simt<false, GEMM_NT><<<grid, SIMT_THREADS, 0, stream>>>(*w);
    CHECK_CUDA(cudaGetLastError());
}

// Gathers factors; says where they are.
static QuantFactors factors_ready(const QuantPrepare *p, const QuantView *v, uint8_t *workspace,
                                  cudaStream_t stream)
{
    QuantFactors factors = p->factors;
    if (!p->gather)
        return factors;
    float *to = (float *)(workspace + p->factors_at);
    quant_gather_scales(v, v->block_rows == INT64_MAX ? 1 : v->operand.q.matrices, factors, to,
                        stream);
    factors.of = to;
    return factors;
}

// Where the tensor cores find an operand.
static const void *units_of(const QuantPrepare *p, const QuantOperand *o, uint8_t *workspace)
{
    return p->expand ? workspace + p->units_at : o->quantised ? o->q.codes : o->values;
}

static void units_ready(const QuantPlan *plan, bool is_a, uint8_t *workspace, cudaStream_t stream)
{
    const GroupedGemm *g = &plan->work.frame;
    const QuantPrepare *p = is_a ? &plan->a : &plan->b;
    if (!p->expand)
        return;
    QuantExpand expand = {};
    expand.from = is_a ? plan->work.a : plan->work.b;
    expand.rows = is_a ? g->rows_max : g->n;
    const bool over_groups = g->form == GEMM_TN;
    expand.matrices = is_a || over_groups ? 1 : g->groups;
    expand.groups = is_a && !plan->dense && !over_groups ? g : NULL;
    expand.unit = plan->unit;
    expand.scaled = plan->scaled;
    expand.to = workspace + p->units_at;
    quant_expand(&expand, stream);
}

static bool cublas_run(const QuantGemm *args, const QuantPlan *p, const QuantHopper *h,
                       uint8_t *workspace, Stream stream)
{
    CublasProduct product = {};
    product.gemm.form = GEMM_NT;
    product.gemm.dtype = p->unit == QUANT_UNIT_BF16 ? DTYPE_BF16 : DTYPE_F8_E4M3;
    product.gemm.out_dtype = args->out_dtype;
    product.gemm.accumulate = args->accumulate;
    product.gemm.rows = args->rows_max;
    product.gemm.n = args->n;
    product.gemm.k = args->k;
    product.gemm.a = h->a;
    product.gemm.b = h->b;
    product.gemm.c = args->c;
    product.gemm.workspace = workspace + p->cublas_at;
    product.kind_a = p->kind_a;
    product.kind_b = p->kind_b;
    product.scale_a = h->fa.of;
    product.scale_b = h->fb.of;
    product.fast_sums = p->unit == QUANT_UNIT_E4M3 && p->block == 0;
    return cublas_product(&product, stream);
}

// Few rows, and a weight that would be expanded for them.
static bool rows_run(const QuantGemm *args, const QuantPlan *p, uint8_t *workspace,
                     cudaStream_t stream)
{
    const int64_t rows = args->rows_expected > 0 && args->rows_expected < args->rows_max
                             ? args->rows_expected
                             : args->rows_max;
    if (args->sums_over_groups || !p->b.expand || p->unit != QUANT_UNIT_BF16 ||
        rows > (int64_t)FEW_ROWS * args->groups)
        return false;
    QuantRows q = {};
    q.work = p->work;
    q.a_scaled = p->scaled;
    q.finish = p->finish;
    const bool expand = p->a.expand && args->rows_max > 1; // else the product does it
    if (expand) {
        QuantGemm plain = *args;
        plain.a = QuantOperand{};
        plain.a.values = units_of(&p->a, &args->a, workspace);
        q.work.a = quant_view(&plain, &plain.a, args->rows_max);
    }
    if (!quant_rows_suits(&q))
        return false;
    if (expand)
        units_ready(p, true, workspace, stream);
    q.fa = factors_ready(&p->a, &p->work.a, workspace, stream);
    q.fb = factors_ready(&p->b, &p->work.b, workspace, stream);
    quant_rows(&q, stream);
    return true;
}

// False: sizes or addresses do not suit the tensor cores; nothing was enqueued.
static bool fast_run(const QuantGemm *args, const QuantPlan *p, Stream stream)
{
    uint8_t *workspace = (uint8_t *)args->workspace;
    workspace += (ALIGN_BYTES - (uintptr_t)workspace % ALIGN_BYTES) % ALIGN_BYTES;
    cudaStream_t cuda = cuda_stream(stream);
    QuantHopper h = {};
    h.frame = p->work.frame;
    h.unit = p->unit;
    h.a = units_of(&p->a, &args->a, workspace);
    h.b = units_of(&p->b, &args->b, workspace);
    h.block = p->block;
    h.b_per_row = p->b_per_row;
    h.finish = p->finish;
    if (cuda_is_hopper() && rows_run(args, p, workspace, cuda))
        return true;
    if (!quant_hopper_suits(&h))
        return false;
    units_ready(p, true, workspace, cuda);
    units_ready(p, false, workspace, cuda);
    h.fa = factors_ready(&p->a, &p->work.a, workspace, cuda);
    h.fb = factors_ready(&p->b, &p->work.b, workspace, cuda);
    if (!p->cublas || !cublas_run(args, p, &h, workspace, stream))
        quant_hopper(&h, cuda);
    return true;
}

// Operands of sums over groups: e4m3, rows of blocks, places that columns of 128 begin at.
static bool codes_suit(const QuantOperand *o)
{
    return o->quantised && o->q.rule.code == CODE_E4M3 && o->q.rule.block_rows == 1 &&
           o->q.code_layout == CODES_BYTES && o->q.scale_layout == SCALES_PLAIN &&
           o->q.columns % EXPERT_TERMS_ALIGN == 0 &&
           (o->q.rule.block_columns > 0 || o->q.rule.scale_dtype == DTYPE_F32);
}

static void quant_gemm_check(const QuantGemm *args)
{
    CHECK_RULE(args->dtype == DTYPE_F32 || args->dtype == DTYPE_BF16);
    CHECK_RULE(args->out_dtype == args->dtype || args->out_dtype == DTYPE_F32);
    CHECK_RULE(!args->accumulate || args->out_dtype == DTYPE_F32);
    if (args->sums_over_groups)
        CHECK_RULE(args->product == PRODUCT_SCALED && args->group_rows && codes_suit(&args->a) &&
                   codes_suit(&args->b));
    CHECK_RULE(!args->group_rows == !args->group_first && (args->group_rows || args->groups == 1));
    const int64_t most = INT32_MAX - 255; // coordinates inside a matrix are 32 bits wide
    CHECK_RULE(args->n <= most && args->k <= most && args->rows_max <= most);
}

void quant_gemm_cuda(const QuantGemm *args, Stream stream)
{
    quant_gemm_check(args);
    if (args->rows_max == 0 || args->groups == 0 || args->n == 0)
        return;
    const QuantPlan p = quant_plan(args);
    if (!p.fast || !fast_run(args, &p, stream))
        simt_run(&p.work, cuda_stream(stream));
}
