// Partial placements on the host: checks of the request, and the kernels of kernels/terms.h for
// terms that lie together.
#include "parallel/partial.h"

#include "parallel/placement.h"

static const Stream host = {.device = DEVICE_CPU};

bool partial_check(DType dtype, CommOp op, Error *error)
{
    const char *name = dtype_row(dtype)->name;
    if (!terms_has_arithmetic(dtype))
        return error_set(error, EXIT_CODE_USAGE,
                         "use f32, f64, bf16, f16 or an integer type, or no P",
                         "P(%s): there is no arithmetic for %s", placement_op_name(op), name);
    if (op == COMM_AVG && terms_is_integer(dtype))
        return error_set(error, EXIT_CODE_USAGE, "use P(sum), or a floating-point type",
                         "P(avg): the average of %s would be rounded", name);
    return true;
}

TermsOp partial_terms_op(CommOp op)
{
    static const TermsOp ops[] = {[COMM_SUM] = TERMS_SUM,
                                  [COMM_AVG] = TERMS_AVG,
                                  [COMM_PRODUCT] = TERMS_PRODUCT,
                                  [COMM_MAX] = TERMS_MAX,
                                  [COMM_MIN] = TERMS_MIN};
    return ops[op];
}

bool partial_has_identity(CommOp op)
{
    return op == COMM_SUM || op == COMM_PRODUCT;
}

void partial_combine(DType dtype, CommOp op, int ranks, const void *terms, int64_t count, void *out)
{
    const TermsCombine args = {.dtype = dtype,
                               .op = partial_terms_op(op),
                               .terms = ranks,
                               .count = count,
                               .stride = count,
                               .own = terms,
                               .others = (const char *)terms + dtype_bytes(dtype, (uint64_t)count),
                               .out = out};
    terms_combine(&args, host);
}

void partial_fill_identity(DType dtype, CommOp op, int64_t count, void *out)
{
    const TermsIdentity args = {
        .dtype = dtype, .op = partial_terms_op(op), .count = count, .out = out};
    terms_identity(&args, host);
}
