// Every encoder of every number format as CUDA code, and what kernels use in place of one: for all
// 2^32 floats the code is the table's (whose CPU functions the slow tests hold to the definition),
// bit for bit. Decoders likewise, for all codes.
// labels: gpu
#include "harness/arena.h"
#include "harness/bf16.h"
#include "kernels/cuda_common.cuh"
#include "quant/format_bf16.h"
#include "quant/format_e2m1.h"
#include "quant/format_e4m3fn.h"
#include "quant/format_e5m2.h"
#include "quant/format_e8m0.h"
#include "quant/format_f16.h"
#include "quant/format_integer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" { // cmocka.h does not say so itself
#include <cmocka.h>
}

#include "tests/select_gpu.h"

enum {
    CHUNK_FLOATS = 1 << 26, // 256 MiB of codes
    CHUNKS = 1 << 6,        // all 2^32
    CODES = 1 << 16,        // decoders ignore the bits above the code
    THREADS = 256,
    BUFFERS = 2, // the GPU makes and copies one chunk while the CPU compares the other
};

// One thread: the code of one float. Limit: memory bandwidth.
template <uint32_t (*ENCODE)(float)>
__global__ void encode_kernel(uint32_t first_bits, uint32_t *codes)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    codes[i] = ENCODE(format_f32_value(first_bits + i));
}

// One thread: the f32 bits of one code.
template <float (*DECODE)(uint32_t)> __global__ void decode_kernel(uint32_t *f32_bits)
{
    const uint32_t code = blockIdx.x * blockDim.x + threadIdx.x;
    f32_bits[code] = format_f32_bits(DECODE(code));
}

// Enqueues(stream). The codes of the CHUNK_FLOATS floats from first_bits on.
template <uint32_t (*ENCODE)(float)>
static void encode(uint32_t first_bits, uint32_t *codes, Stream stream)
{
    encode_kernel<ENCODE>
        <<<CHUNK_FLOATS / THREADS, THREADS, 0, cuda_stream(stream)>>>(first_bits, codes);
    CHECK_CUDA(cudaGetLastError());
}

// Enqueues(stream). The values of all CODES codes.
template <float (*DECODE)(uint32_t)> static void decode(uint32_t *f32_bits, Stream stream)
{
    decode_kernel<DECODE><<<CODES / THREADS, THREADS, 0, cuda_stream(stream)>>>(f32_bits);
    CHECK_CUDA(cudaGetLastError());
}

template <uint32_t BITS> FORMAT_INLINE uint32_t integer_encode(float value)
{
    return format_integer_encode(BITS, value);
}

template <uint32_t BITS> FORMAT_INLINE float integer_decode(uint32_t code)
{
    return format_integer_decode(BITS, code);
}

FORMAT_INLINE uint32_t bf16_encode(float value)
{
    return bf16_bits_from_f32(value);
}

// Where the halves differ this is no code.
static __device__ __forceinline__ uint32_t bf16_encode_pair(float value)
{
    const uint32_t pair = bf16_pair(value, value);
    return pair >> 16 == (pair & 0xFFFFu) ? pair >> 16 : pair;
}

typedef struct DeviceEncoder {
    const char *format, *name; // of the row in format_table
    const char *function;      // what runs on the device
    void (*encode)(uint32_t first_bits, uint32_t *codes, Stream stream);
} DeviceEncoder;

// clang-format off
#define ENCODER(of_, name_, ...) {#of_, #name_, #__VA_ARGS__, encode<__VA_ARGS__>},
#define FLOAT_ENCODER(of_, name_, past_, nan_, keeps_, note_) \
    ENCODER(of_, name_, format_##of_##_encode_##name_)
static const DeviceEncoder device_encoders[] = {
    FORMAT_E4M3FN_ENCODERS(FLOAT_ENCODER)
    FORMAT_E5M2_ENCODERS(FLOAT_ENCODER)
    FORMAT_E2M1_ENCODERS(FLOAT_ENCODER)
    FORMAT_F16_ENCODERS(FLOAT_ENCODER)
    FORMAT_BF16_ENCODERS(FLOAT_ENCODER)
    ENCODER(bf16, torch, bf16_encode)
    ENCODER(bf16, torch, bf16_encode_pair)
    ENCODER(e8m0, torch, format_e8m0_encode_torch)
    ENCODER(e8m0, ocp_floor, format_e8m0_encode_floor)
    ENCODER(e8m0, cuda_rz, format_e8m0_encode_floor_satfinite)
    ENCODER(e8m0, cuda_rz_nosat, format_e8m0_encode_floor)
    ENCODER(e8m0, cuda_rp, format_e8m0_encode_ceil_satfinite)
    ENCODER(e8m0, cuda_rp_nosat, format_e8m0_encode_ceil)
    ENCODER(e8m0, torchao_rceil, format_e8m0_encode_ceil)
    ENCODER(int8, torchao, integer_encode<8>)
    ENCODER(int4, torchao, integer_encode<4>)
};
// clang-format on

typedef struct DeviceDecoder {
    const char *format, *function;
    bool quiet; // makes NaN quiet, which the table's does not
    void (*decode)(uint32_t *f32_bits, Stream stream);
} DeviceDecoder;

// clang-format off
#define DECODER(of_, quiet_, ...) {#of_, #__VA_ARGS__, quiet_, decode<__VA_ARGS__>},
static const DeviceDecoder device_decoders[] = {
    DECODER(e4m3fn, false, format_e4m3fn_decode)
    DECODER(e5m2, false, format_e5m2_decode)
    DECODER(e2m1, false, format_e2m1_decode)
    DECODER(f16, true, format_f16_decode)
    DECODER(bf16, false, format_bf16_decode)
    DECODER(e8m0, false, format_e8m0_decode)
    DECODER(int8, false, integer_decode<8>)
    DECODER(int4, false, integer_decode<4>)
};
// clang-format on

typedef struct Sweep {
    Arena *pinned, *device;
    Stream stream[BUFFERS];
    uint32_t *made[BUFFERS]; // on the device: [CHUNK_FLOATS]
    uint32_t *back[BUFFERS]; // the copies
} Sweep;

static Sweep sweep_create(void)
{
    Sweep sweep;
    sweep.pinned = arena_create(MEMORY_PINNED, DEVICE_CUDA);
    sweep.device = arena_create(MEMORY_DEVICE, DEVICE_CUDA);
    for (int b = 0; b < BUFFERS; b++) {
        sweep.stream[b] = stream_create(DEVICE_CUDA);
        sweep.made[b] = ARENA_PUSH(sweep.device, uint32_t, CHUNK_FLOATS, MEMORY_SCRATCH);
        sweep.back[b] = ARENA_PUSH(sweep.pinned, uint32_t, CHUNK_FLOATS, MEMORY_SCRATCH);
    }
    return sweep;
}

static void sweep_destroy(Sweep *sweep)
{
    for (int b = 0; b < BUFFERS; b++)
        stream_destroy(sweep->stream[b]);
    arena_destroy(sweep->pinned);
    arena_destroy(sweep->device);
}

// Enqueues(the chunk's stream)
static void begin_chunk(const Sweep *sweep, const DeviceEncoder *row, uint32_t chunk)
{
    const uint32_t b = chunk % BUFFERS;
    row->encode(chunk * CHUNK_FLOATS, sweep->made[b], sweep->stream[b]);
    device_copy(sweep->back[b], sweep->made[b], CHUNK_FLOATS * sizeof(uint32_t), sweep->stream[b]);
}

// Waits(the chunk's stream). Index of the first difference, CHUNK_FLOATS if there is none.
static uint32_t end_chunk(const Sweep *sweep, const FormatEncoder *encoder, uint32_t chunk)
{
    const uint32_t first_bits = chunk * CHUNK_FLOATS, *codes = sweep->back[chunk % BUFFERS];
    uint32_t first = CHUNK_FLOATS;
    stream_wait(sweep->stream[chunk % BUFFERS]);
#pragma omp parallel for reduction(min : first)
    for (uint32_t i = 0; i < CHUNK_FLOATS; i++)
        if (codes[i] != encoder->encode(format_f32_value(first_bits + i)) && i < first)
            first = i;
    return first;
}

static void expect_encoder(const Sweep *sweep, const DeviceEncoder *row,
                           const FormatEncoder *encoder)
{
    begin_chunk(sweep, row, 0);
    for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
        if (chunk + 1 < CHUNKS)
            begin_chunk(sweep, row, chunk + 1);
        const uint32_t i = end_chunk(sweep, encoder, chunk), bits = chunk * CHUNK_FLOATS + i;
        if (i < CHUNK_FLOATS)
            fail_msg("%s %s: f32 %08X gives %X on CUDA (%s), %X on the CPU", row->format, row->name,
                     bits, sweep->back[chunk % BUFFERS][i], row->function,
                     encoder->encode(format_f32_value(bits)));
    }
}

static void encoders_give_the_codes_of_the_cpu(void **state)
{
    const Sweep *sweep = (const Sweep *)*state;
    size_t swept = 0;
    for (const Format *const *format = format_table; *format; format++)
        for (int e = 0; e < (*format)->encoder_count; e++) {
            const FormatEncoder *encoder = &(*format)->encoders[e];
            const size_t before = swept;
            for (const DeviceEncoder &row : device_encoders)
                if (!strcmp(row.format, (*format)->name) && !strcmp(row.name, encoder->name)) {
                    expect_encoder(sweep, &row, encoder);
                    swept++;
                }
            if (swept == before)
                fail_msg("%s %s: add a row to device_encoders", (*format)->name, encoder->name);
        }
    assert_int_equal(swept, COUNT_OF(device_encoders));
}

static void expect_decoder(const Sweep *sweep, const DeviceDecoder *row, const Format *format)
{
    row->decode(sweep->made[0], sweep->stream[0]);
    device_copy(sweep->back[0], sweep->made[0], CODES * sizeof(uint32_t), sweep->stream[0]);
    stream_wait(sweep->stream[0]);
    for (uint32_t code = 0; code < CODES; code++) {
        uint32_t expected = format_f32_bits(format->decode(code));
        if (row->quiet && (expected & 0x7FFFFFFFu) > FORMAT_F32_INFINITY)
            expected |= 0x400000u;
        if (sweep->back[0][code] != expected)
            fail_msg("%s code %X gives f32 %08X on CUDA (%s), %08X on the CPU", format->name, code,
                     sweep->back[0][code], row->function, expected);
    }
}

static void decoders_give_the_values_of_the_cpu(void **state)
{
    const Sweep *sweep = (const Sweep *)*state;
    size_t swept = 0;
    for (const Format *const *format = format_table; *format; format++) {
        const size_t before = swept;
        for (const DeviceDecoder &row : device_decoders)
            if (!strcmp(row.format, (*format)->name)) {
                expect_decoder(sweep, &row, *format);
                swept++;
            }
        if (swept == before)
            fail_msg("%s: add a row to device_decoders", (*format)->name);
    }
    assert_int_equal(swept, COUNT_OF(device_decoders));
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    Sweep sweep = sweep_create();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(decoders_give_the_values_of_the_cpu, &sweep),
        cmocka_unit_test_prestate(encoders_give_the_codes_of_the_cpu, &sweep),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    sweep_destroy(&sweep);
    return failed;
}
