// random.c -- random numbers on the CPU.
//
// A fill goes tile by tile: the index's upper word is constant inside a tile (tiles end where it
// changes), so the loop over a tile has nothing but 32-bit lanes and becomes vector code. Philox
// needs no state, so threads share nothing.
#include "harness/random.h"

#include "harness/bf16.h"

enum { TILE_VALUES = 1024, TILES_PER_THREAD_MIN = 16 };

// One copy of the loop per vector width, chosen when the program is loaded; the results are the
// same in all of them. (AddressSanitizer would run the chooser before it is ready.)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTOR_CLONES
#endif

RandomBlock random_block(uint64_t seed, uint32_t stream, uint64_t index)
{
    return philox_value_block(seed, stream, index);
}

float random_uniform(uint64_t seed, uint32_t stream, uint64_t index)
{
    return philox_uniform(philox_value_block(seed, stream, index));
}

float random_normal(uint64_t seed, uint32_t stream, uint64_t index)
{
    return philox_normal(philox_value_block(seed, stream, index));
}

// value[i] for indices first .. first + count, which share their upper word; count <= TILE_VALUES.
VECTOR_CLONES
static void fill_tile(const RandomFill *fill, uint64_t first, int count, float *value)
{
    uint32_t low = (uint32_t)first, high = (uint32_t)(first >> 32);
    uint32_t key0 = (uint32_t)fill->seed, key1 = (uint32_t)(fill->seed >> 32);
    uint32_t stream = fill->stream;
    float mean = fill->mean, deviation = fill->deviation;
    for (int i = 0; i < count; i++) {
        PhiloxBlock counter = {{low + (uint32_t)i, high, stream, 0}};
        float normal = philox_normal(philox_block(counter, key0, key1));
        value[i] = philox_scaled(mean, deviation, normal);
    }
}

// Values first .. first + count of the tensor, `first` counted from its local start.
static void fill_range(const RandomFill *fill, int64_t first, int64_t count)
{
    uint64_t global = (uint64_t)fill->first_row * (uint64_t)fill->columns + (uint64_t)first;
    float tile[TILE_VALUES];
    while (count > 0) {
        uint64_t to_next_word = (((global >> 32) + 1) << 32) - global;
        int values = count < TILE_VALUES ? (int)count : TILE_VALUES;
        if (to_next_word < (uint64_t)values)
            values = (int)to_next_word;
        if (fill->dtype == DTYPE_F32) {
            fill_tile(fill, global, values, (float *)fill->out + first);
        } else {
            uint16_t *out = (uint16_t *)fill->out + first;
            fill_tile(fill, global, values, tile);
            for (int i = 0; i < values; i++)
                out[i] = bf16_bits_from_f32(tile[i]);
        }
        first += values;
        global += (uint64_t)values;
        count -= values;
    }
}

static void random_fill_cpu(const RandomFill *fill, Stream stream)
{
    (void)stream;
    int64_t count = fill->rows * fill->columns;
    int64_t tiles = (count + TILE_VALUES - 1) / TILE_VALUES;
#pragma omp parallel for schedule(static) if (tiles >= TILES_PER_THREAD_MIN)
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t first = tile * TILE_VALUES;
        int64_t left = count - first;
        fill_range(fill, first, left < TILE_VALUES ? left : TILE_VALUES);
    }
}

void random_fill(const RandomFill *fill, Stream stream)
{
    void (*const row[DEVICE_KINDS])(const RandomFill *, Stream) = {
        [DEVICE_CPU] = random_fill_cpu, [DEVICE_CUDA] = random_fill_cuda};
    CHECK_RULE(fill->dtype == DTYPE_F32 || fill->dtype == DTYPE_BF16);
    CHECK_RULE(fill->rows >= 0 && fill->columns >= 0 && fill->first_row >= 0);
    CHECK(row[stream.device], EXIT_CODE_HARDWARE, "use --device cpu, or build with CUDA",
          "this build cannot fill tensors on %s", device_kind_name(stream.device));
    if (fill->rows > 0 && fill->columns > 0)
        row[stream.device](fill, stream);
}
