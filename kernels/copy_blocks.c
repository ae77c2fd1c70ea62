// copy_blocks.c -- strided copies on the CPU: one memcpy a run, of a length that the compiler knows
// where runs are short.
#include "kernels/copy_blocks.h"

#include "kernels/cpu_math.h"

enum { LINE_BYTES = 64, LINES_BYTES_MIN = 512, LINES_BYTES_MAX = 4096 };

KERNEL_DEFINE(copy_blocks, CopyBlocks)

// Two levels of runs where one will do cost a loop; runs that touch cost a call each.
static void join_runs(CopyBlock *block)
{
    for (int level = 1; level >= 0; level--) {
        bool touch = block->from_strides[level] == block->run_bytes &&
                     block->to_strides[level] == block->run_bytes;
        if (block->counts[level] != 1 && !(touch && (level == 1 || block->counts[1] == 1)))
            continue;
        block->run_bytes *= (uint64_t)block->counts[level];
        block->counts[level] = 1;
    }
    if (block->counts[1] == 1 && block->counts[0] > 1) { // long loops inside
        block->counts[1] = block->counts[0];
        block->from_strides[1] = block->from_strides[0];
        block->to_strides[1] = block->to_strides[0];
        block->counts[0] = 1;
    }
}

CopyBlocks copy_blocks_measure(CopyBlock *block, int64_t blocks)
{
    CopyBlocks all = {.blocks = blocks};
    uint64_t places = 0; // a bit is set in it that is set in any place, stride or length
    for (int64_t i = 0; i < blocks; i++) {
        CopyBlock *b = &block[i];
        join_runs(b);
        uint64_t bytes = b->run_bytes * (uint64_t)(b->counts[0] * b->counts[1]);
        b->first_tile = all.tiles;
        all.tiles += (int64_t)((bytes + COPY_TILE_BYTES - 1) / COPY_TILE_BYTES);
        all.bytes += bytes;
        places |= b->from_first | b->to_first | b->run_bytes;
        for (int level = 0; level < 2; level++)
            if (b->counts[level] > 1)
                places |= b->from_strides[level] | b->to_strides[level];
    }
    all.unit_bytes = 16;
    while (places % (uint64_t)all.unit_bytes != 0)
        all.unit_bytes /= 2;
    return all;
}

// Inlined with a constant length, the copy is one load and one store.
CPU_INLINE void copy_runs(const CopyBlock *block, const char *from, char *to, uint64_t bytes)
{
    for (int64_t i = 0; i < block->counts[0]; i++) {
        const char *source = from + (uint64_t)i * block->from_strides[0];
        char *target = to + (uint64_t)i * block->to_strides[0];
        for (int64_t j = 0; j < block->counts[1]; j++) {
            memcpy(target, source, bytes);
            source += block->from_strides[1];
            target += block->to_strides[1];
        }
    }
}

// Runs of a few lines, each in another page: the processor's own prefetch stops at every end of a
// run, so the next run is asked for line by line while this one is copied.
CPU_CLONES
static void copy_lines(const CopyBlock *block, const char *from, char *to)
{
    uint64_t whole = block->run_bytes / LINE_BYTES * LINE_BYTES;
    for (int64_t i = 0; i < block->counts[0]; i++) {
        const char *source = from + (uint64_t)i * block->from_strides[0];
        char *target = to + (uint64_t)i * block->to_strides[0];
        for (int64_t j = 0; j < block->counts[1]; j++) {
            for (uint64_t line = 0; line < whole; line += LINE_BYTES) {
                __builtin_prefetch(source + block->from_strides[1] + line);
                memcpy(target + line, source + line, LINE_BYTES);
            }
            memcpy(target + whole, source + whole, block->run_bytes - whole);
            source += block->from_strides[1];
            target += block->to_strides[1];
        }
    }
}

void copy_blocks_cpu(const CopyBlocks *args, Stream stream)
{
    (void)stream;
    for (int64_t i = 0; i < args->blocks; i++) {
        const CopyBlock *block = &args->block[i];
        const char *from = (const char *)args->from + block->from_first;
        char *to = (char *)args->to + block->to_first;
        if (block->run_bytes >= LINES_BYTES_MIN && block->run_bytes <= LINES_BYTES_MAX) {
            copy_lines(block, from, to);
            continue;
        }
        switch (block->run_bytes) {
        case 1:
            copy_runs(block, from, to, 1);
            break;
        case 2:
            copy_runs(block, from, to, 2);
            break;
        case 4:
            copy_runs(block, from, to, 4);
            break;
        case 8:
            copy_runs(block, from, to, 8);
            break;
        case 16:
            copy_runs(block, from, to, 16);
            break;
        default:
            copy_runs(block, from, to, block->run_bytes);
        }
    }
}

KernelCost copy_blocks_cost(const CopyBlocks *args)
{
    return (KernelCost){.bytes = 2.0 * (double)args->bytes};
}
