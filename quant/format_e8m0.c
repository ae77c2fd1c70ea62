// format_e8m0.c -- e8m0 in the table: seven conventions, and what LLVM was seen to do.
//
// Sources: see format_e8m0.h; LLVM's results are those that vkuzo/pytorch_scripts recorded in
// llvm_e8m0/results.txt.
#include "quant/format_e8m0.h"

#include "quant/format.h"

#include <math.h>

#define E8M0_ENCODER(name_, encode_, rounding_, beyond_, note_)                                    \
    {                                                                                              \
        .name = (name_), .encode = format_e8m0_encode_##encode_, .rounding = (rounding_),          \
        .first_step_up = (rounding_) == FORMAT_NEAREST_UP, .overflow = (beyond_),                  \
        .infinity = (beyond_), .nan_code = FORMAT_E8M0_NAN, .note = (note_)                        \
    }

static const FormatEncoder encoders[] = {
    E8M0_ENCODER("torch", torch, FORMAT_NEAREST_UP, FORMAT_NAN,
                 "torch's cast; between 2^-127 and 2^-126 it always rounds up"),
    E8M0_ENCODER("ocp_floor", floor, FORMAT_DOWN, FORMAT_NAN,
                 "OCP MX 1.0, 6.3: the largest power of two not above; torchao's FLOOR"),
    E8M0_ENCODER("cuda_rz", floor_satfinite, FORMAT_DOWN, FORMAT_LARGEST,
                 "CUDA cudaRoundZero, __NV_SATFINITE"),
    E8M0_ENCODER("cuda_rz_nosat", floor, FORMAT_DOWN, FORMAT_NAN, "CUDA cudaRoundZero, __NV_NOSAT"),
    E8M0_ENCODER("cuda_rp", ceil_satfinite, FORMAT_UP, FORMAT_LARGEST,
                 "CUDA cudaRoundPosInf, __NV_SATFINITE (its default)"),
    E8M0_ENCODER("cuda_rp_nosat", ceil, FORMAT_UP, FORMAT_NAN, "CUDA cudaRoundPosInf, __NV_NOSAT"),
    E8M0_ENCODER("torchao_rceil", ceil, FORMAT_UP, FORMAT_NAN,
                 "torchao's RCEIL, the default of mxfp8"),
};

const Format format_e8m0 = {
    .name = "e8m0",
    .bits = 8,
    .exponent_bits = 8,
    .bias = 127,
    .maximum_code = FORMAT_E8M0_MAXIMUM,
    .maximum = 0x1p127,
    .minimum_normal = 0x1p-127,
    .minimum_subnormal = NAN,
    .has_nan = true,
    .decode = format_e8m0_decode,
    .encoders = encoders,
    .encoder_count = COUNT_OF(encoders),
    .note = "scales of the MX formats: powers of two; no zero, no sign",
};

const FormatE8m0Record format_e8m0_llvm[] = {
    {0x00000000, 0x00, "0"},
    {0x00400000, 0x00, "2^-127"},
    {0x00400001, 0x00, "just above 2^-127"},
    {0x00500000, 0x00, "1.25 * 2^-127"},
    {0x00600000, 0x01, "1.5 * 2^-127"},
    {0x007FFFFF, 0x01, "largest subnormal"},
    {0x00800000, 0x01, "2^-126"},
    {0x3E800000, 0x7D, "0.25"},
    {0x3EC00000, 0x7E, "0.375"},
    {0x3F000000, 0x7E, "0.5"},
    {0x3F400000, 0x7F, "0.75"},
    {0x3F800000, 0x7F, "1"},
    {0x3FBFFFFF, 0x7F, "just below 1.5"},
    {0x3FC00000, 0x80, "1.5"},
    {0x40000000, 0x80, "2"},
    {0x40400000, 0x81, "3"},
    {0x40800000, 0x81, "4"},
    {0x40C00000, 0x82, "6"},
    {0x7F3FFFFF, 0xFE, "just below 1.5 * 2^127"},
    {0x7F400000, 0xFF, "1.5 * 2^127"},
    {0x7F7FFFFF, 0xFF, "largest float"},
    {0x7F800000, 0xFF, "infinity"},
    {0x7FC00000, 0xFF, "NaN"},
    {0, 0, NULL},
};
