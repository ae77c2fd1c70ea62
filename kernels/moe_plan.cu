// moe_plan.cu -- the addressing of expert parallelism on the GPU: plan, pack, maps.
//
// Every position is a rank in (token, slot) order: how many earlier slots have the same key. Tokens
// are cut into chunks; the plan counts each chunk's keys, scans the counts over the chunks, and
// ranks inside a chunk by letting each warp walk its slots in order, 32 at a time, where a match
// over the warp gives the earlier lanes with the same key. Atomics only count; no position comes
// from one.
//
// Keys ("bins") of a slot: its expert, its destination rank (slots to that rank), and for the first
// slot of a token to a rank again the rank (rows to that rank). The method is a counting sort by
// key, as in radix sorts: Satish, Harris, Garland, "Designing efficient sorting algorithms for
// manycore GPUs" (IPDPS 2009).
#include "kernels/cuda_common.cuh"
#include "kernels/moe_plan.h"

enum {
    PLAN_CHUNK_TOKENS = 128, // tokens of a block
    PLAN_WARPS = 8,
    SCAN_SLICES = 16, // warps that share the chunks of 32 bins
    PACK_THREADS = 256,
    PACK_BLOCKS = 3, // on a multiprocessor: at most 80 registers a thread
    PACK_UNITS = 8,  // independent loads of a lane
    MAPS_THREADS = 256,
    SHARED_BYTES_MAX = 48 * 1024, // what every block may have without asking
};

// Bins of a plan: experts of all ranks (padded to ranks * experts_per_rank), then rows per rank,
// then slots per rank.
__host__ __device__ static inline int plan_row_bin(const MoeShape &shape)
{
    return shape.ranks * shape.experts_per_rank;
}
__host__ __device__ static inline int plan_slot_bin(const MoeShape &shape)
{
    return plan_row_bin(shape) + shape.ranks;
}
__host__ __device__ static inline int plan_bins(const MoeShape &shape)
{
    return plan_slot_bin(shape) + shape.ranks;
}

// What a lane knows about the slot it looks at, together with its warp.
struct PlanSlot {
    bool real;  // the lane has a slot
    bool first; // the token's first slot to its rank
    int64_t token;
    int expert, rank;
    unsigned same_expert, same_rank,
        firsts; // lanes of this round with the same key; lanes that are first
};

__device__ static PlanSlot plan_look(const MoePlan &plan, int64_t slot, int64_t slot_end)
{
    PlanSlot look;
    look.real = slot < slot_end;
    look.expert = look.real ? plan.expert_of_slot[slot] : -1;
    look.rank = look.real ? look.expert / plan.shape.experts_per_rank : -1;
    look.token = slot / plan.shape.top_k;
    const bool opens_token = slot == look.token * plan.shape.top_k;
    look.first =
        look.real &&
        (opens_token || plan.expert_of_slot[slot - 1] / plan.shape.experts_per_rank != look.rank);
    look.same_expert = __match_any_sync(WARP_ALL, look.expert);
    look.same_rank = __match_any_sync(WARP_ALL, look.rank);
    look.firsts = __ballot_sync(WARP_ALL, look.first);
    return look;
}

// Adds a round of 32 slots to the warp's bins: the lowest lane of each key writes.
__device__ static void plan_add(const MoePlan &plan, const PlanSlot &look, int32_t *bin)
{
    const unsigned below = lanes_below();
    if (look.real && !(look.same_expert & below))
        bin[look.expert] += __popc(look.same_expert);
    if (look.real && !(look.same_rank & below)) {
        bin[plan_row_bin(plan.shape) + look.rank] += __popc(look.same_rank & look.firsts);
        bin[plan_slot_bin(plan.shape) + look.rank] += __popc(look.same_rank);
    }
    __syncwarp();
}

// Slots of one warp of a block: whole tokens, in order.
struct PlanRange {
    int64_t begin, end;
};

__device__ static PlanRange plan_range(const MoePlan &plan)
{
    const int warps = blockDim.x / WARP_LANES;
    const int64_t tokens_per_warp = PLAN_CHUNK_TOKENS / warps;
    const int64_t first =
        (int64_t)blockIdx.x * PLAN_CHUNK_TOKENS + threadIdx.x / WARP_LANES * tokens_per_warp;
    const int64_t last = first + tokens_per_warp;
    PlanRange range;
    range.begin = (first < plan.tokens ? first : plan.tokens) * plan.shape.top_k;
    range.end = (last < plan.tokens ? last : plan.tokens) * plan.shape.top_k;
    return range;
}

// Clears the bins of all warps, then each warp counts its slots into its own. Shared:
// [warps][bins].
__device__ static void plan_count_warps(const MoePlan &plan, int32_t *bins_of_warp)
{
    const int bins = plan_bins(plan.shape), warps = blockDim.x / WARP_LANES;
    for (int i = threadIdx.x; i < warps * bins; i += blockDim.x)
        bins_of_warp[i] = 0;
    __syncthreads();
    const PlanRange range = plan_range(plan);
    int32_t *mine = bins_of_warp + threadIdx.x / WARP_LANES * bins;
    for (int64_t slot = range.begin; slot < range.end; slot += WARP_LANES)
        plan_add(plan, plan_look(plan, slot + lane_index(), range.end), mine);
    __syncthreads();
}

// Block: one chunk of tokens. Leaves the chunk's counts in scratch[chunk][bins] and clears the
// chunk's row places.
__global__ void __launch_bounds__(PLAN_WARPS *WARP_LANES) plan_count_kernel(MoePlan plan)
{
    extern __shared__ int32_t bins_of_warp[];
    plan_count_warps(plan, bins_of_warp);
    const int bins = plan_bins(plan.shape), warps = blockDim.x / WARP_LANES;
    for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) {
        int32_t count = 0;
        for (int warp = 0; warp < warps; warp++)
            count += bins_of_warp[warp * bins + bin];
        plan.scratch[(int64_t)blockIdx.x * bins + bin] = count;
    }
    const int64_t first = (int64_t)blockIdx.x * PLAN_CHUNK_TOKENS;
    const int64_t last = min(first + PLAN_CHUNK_TOKENS, plan.tokens);
    for (int64_t i = first * plan.shape.ranks + threadIdx.x; i < last * plan.shape.ranks;
         i += blockDim.x) {
        plan.row_of_token[i] = -1;
        plan.return_of_row[i] = -1;
    }
}

// Block: 32 bins (lanes) by SCAN_SLICES runs of chunks (warps). Turns scratch[chunk][bins] into the
// counts of all earlier chunks, leaves the totals behind them, and writes the count records.
__global__ void __launch_bounds__(SCAN_SLICES *WARP_LANES)
    plan_scan_kernel(MoePlan plan, int chunks)
{
    __shared__ int32_t sum_of_slice[SCAN_SLICES][WARP_LANES];
    const int bins = plan_bins(plan.shape), bin = blockIdx.x * WARP_LANES + lane_index();
    const int slice = threadIdx.x / WARP_LANES, length = (chunks + SCAN_SLICES - 1) / SCAN_SLICES;
    const int first = min(slice * length, chunks), last = min(first + length, chunks);
    int32_t sum = 0;
    if (bin < bins)
#pragma unroll 8
        for (int chunk = first; chunk < last; chunk++)
            sum += plan.scratch[(int64_t)chunk * bins + bin];
    sum_of_slice[slice][lane_index()] = sum;
    __syncthreads();
    if (bin >= bins)
        return;
    int32_t running = 0, total = 0;
    for (int s = 0; s < SCAN_SLICES; s++) {
        running += s < slice ? sum_of_slice[s][lane_index()] : 0;
        total += sum_of_slice[s][lane_index()];
    }
#pragma unroll 8
    for (int chunk = first; chunk < last; chunk++) {
        const int32_t count = plan.scratch[(int64_t)chunk * bins + bin];
        plan.scratch[(int64_t)chunk * bins + bin] = running;
        running += count;
    }
    if (slice > 0)
        return;
    plan.scratch[(int64_t)chunks * bins + bin] = total;
    const MoeShape &shape = plan.shape;
    const int row_bin = plan_row_bin(shape), slot_bin = plan_slot_bin(shape);
    if (bin < row_bin)
        plan.counts[(int64_t)(bin / shape.experts_per_rank) * shape.count_words +
                    MOE_COUNT_EXPERTS + bin % shape.experts_per_rank] = total;
    else if (bin < slot_bin)
        plan.counts[(int64_t)(bin - row_bin) * shape.count_words + MOE_COUNT_ROWS] = total;
    else
        plan.counts[(int64_t)(bin - slot_bin) * shape.count_words + MOE_COUNT_SLOTS] = total;
}

// Where the return places of each rank begin: after those of the lower ranks, or at the rank's
// fixed segment. total: [bins] of the whole plan. Shared out: row_base[ranks], slot_base[ranks].
__device__ static void plan_return_bases(const MoePlan &plan, const int32_t *total,
                                         int32_t *row_base, int32_t *slot_base)
{
    const MoeShape &shape = plan.shape;
    for (int rank = threadIdx.x; rank < shape.ranks; rank += blockDim.x) {
        int32_t rows = 0, slots = 0;
        for (int lower = 0; plan.compact && lower < rank; lower++) {
            rows += total[plan_row_bin(shape) + lower];
            slots += total[plan_slot_bin(shape) + lower];
        }
        row_base[rank] = plan.compact ? rows : (int32_t)(rank * shape.tokens_max);
        slot_base[rank] =
            plan.compact ? slots : (int32_t)(rank * shape.tokens_max * shape.slots_max);
    }
}

// Block: one chunk; warp: a run of its tokens. Shared: [warps][bins] counts, then running
// positions; bases per rank.
__global__ void __launch_bounds__(PLAN_WARPS *WARP_LANES)
    plan_place_kernel(MoePlan plan, int chunks)
{
    extern __shared__ int32_t bins_of_warp[];
    const MoeShape &shape = plan.shape;
    const int bins = plan_bins(shape), warps = blockDim.x / WARP_LANES;
    int32_t *row_base = bins_of_warp + warps * bins, *slot_base = row_base + shape.ranks;
    plan_return_bases(plan, plan.scratch + (int64_t)chunks * bins, row_base, slot_base);
    plan_count_warps(plan, bins_of_warp);
    for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) {
        int32_t running = plan.scratch[(int64_t)blockIdx.x * bins + bin];
        for (int warp = 0; warp < warps; warp++) {
            const int32_t count = bins_of_warp[warp * bins + bin];
            bins_of_warp[warp * bins + bin] = running;
            running += count;
        }
    }
    __syncthreads();
    const PlanRange range = plan_range(plan);
    const unsigned below = lanes_below();
    int32_t *place = bins_of_warp + threadIdx.x / WARP_LANES * bins;
    for (int64_t begin = range.begin; begin < range.end; begin += WARP_LANES) {
        const int64_t slot = begin + lane_index();
        const PlanSlot look = plan_look(plan, slot, range.end);
        if (look.real) {
            const int32_t earlier_slots =
                place[plan_slot_bin(shape) + look.rank] + __popc(look.same_rank & below);
            plan.position_of_slot[slot] = place[look.expert] + __popc(look.same_expert & below);
            plan.return_of_slot[slot] = slot_base[look.rank] + earlier_slots;
        }
        if (look.first) {
            const int32_t row = place[plan_row_bin(shape) + look.rank] +
                                __popc(look.same_rank & look.firsts & below);
            plan.row_of_token[look.token * shape.ranks + look.rank] = row;
            plan.return_of_row[look.token * shape.ranks + look.rank] = row_base[look.rank] + row;
        }
        __syncwarp();
        plan_add(plan, look, place);
    }
}

// Warps of a block such that their bins fit into shared memory.
static int plan_warps(const MoeShape *shape)
{
    const size_t bytes_per_warp = sizeof(int32_t) * (size_t)plan_bins(*shape);
    const size_t bytes_free = SHARED_BYTES_MAX - sizeof(int32_t) * 2 * (size_t)shape->ranks;
    int warps = PLAN_WARPS;
    while (warps > 1 && warps * bytes_per_warp > bytes_free)
        warps /= 2;
    CHECK(warps * bytes_per_warp <= bytes_free, EXIT_CODE_USAGE, "use fewer experts or ranks",
          "%d experts over %d ranks need %zu bytes of shared memory in the plan, there are %zu",
          shape->experts, shape->ranks, bytes_per_warp, bytes_free);
    return warps;
}

void moe_plan_cuda(const MoePlan *args, Stream stream)
{
    const int chunks = (int)((args->tokens + PLAN_CHUNK_TOKENS - 1) / PLAN_CHUNK_TOKENS);
    const int bins = plan_bins(args->shape), warps = plan_warps(&args->shape);
    const size_t bins_bytes = sizeof(int32_t) * (size_t)warps * (size_t)bins;
    const size_t bases_bytes = sizeof(int32_t) * 2 * (size_t)args->shape.ranks;
    CHECK_RULE(moe_plan_scratch_words(&args->shape, args->tokens) >= (int64_t)(chunks + 1) * bins);
    const cudaStream_t handle = cuda_stream(stream);
    if (chunks > 0)
        plan_count_kernel<<<chunks, warps * WARP_LANES, bins_bytes, handle>>>(*args);
    plan_scan_kernel<<<(bins + WARP_LANES - 1) / WARP_LANES, SCAN_SLICES * WARP_LANES, 0, handle>>>(
        *args, chunks);
    if (chunks > 0)
        plan_place_kernel<<<chunks, warps * WARP_LANES, bins_bytes + bases_bytes, handle>>>(*args,
                                                                                            chunks);
    CHECK_CUDA(cudaGetLastError());
}

// Word `word` of the header of token's row to `rank`, whose `slots` slots there begin with the
// token's slot `first`.
__device__ static int32_t header_word(const MoePack &pack, int64_t token, int rank, int first,
                                      int slots, int word)
{
    const MoeShape &shape = pack.shape;
    const int64_t first_slot = token * shape.top_k + first;
    switch (word) {
    case MOE_HEADER_SLOTS:
        return slots;
    case MOE_HEADER_RETURN_SLOT:
        return pack.return_of_slot[first_slot];
    case MOE_HEADER_RETURN_ROW:
        return pack.return_of_row[token * shape.ranks + rank];
    case MOE_HEADER_TOKEN:
        return (int32_t)token;
    }
    const int64_t slot = first_slot + (word - MOE_HEADER_FIXED) / MOE_HEADER_PER_SLOT;
    switch ((word - MOE_HEADER_FIXED) % MOE_HEADER_PER_SLOT) {
    case 0:
        return pack.expert_of_slot[slot] - rank * shape.experts_per_rank;
    case 1:
        return pack.position_of_slot[slot];
    default:
        return __float_as_int(pack.weight_of_slot[slot]);
    }
}

// The warp writes one header, neighbouring words from neighbouring lanes, so that a header crosses
// the link whole.
__device__ static void pack_header(const MoePack &pack, int64_t token, int rank)
{
    const MoeShape &shape = pack.shape;
    int first = 0, slots = 0;
    for (int begin = 0; begin < shape.top_k; begin += WARP_LANES) {
        const int j = begin + lane_index();
        const int64_t slot = token * shape.top_k + j;
        const bool real = j < shape.top_k;
        const int of_slot = real ? pack.expert_of_slot[slot] / shape.experts_per_rank : -1;
        first += __popc(__ballot_sync(WARP_ALL, real && of_slot < rank));
        slots += __popc(__ballot_sync(WARP_ALL, real && of_slot == rank));
    }
    const int64_t row = pack.row_of_token[token * shape.ranks + rank];
    int32_t *header = pack.headers_to[rank] + row * shape.header_words;
    const int words = MOE_HEADER_FIXED + MOE_HEADER_PER_SLOT * slots;
    for (int word = lane_index(); word < words; word += WARP_LANES)
        header[word] = header_word(pack, token, rank, first, slots, word);
}

// The warp reads a row once, PACK_UNITS units ahead, and stores it to `to` of every lane whose bit
// is set in `lanes`.
template <typename Unit>
__device__ static void pack_row(const Unit *from, Unit *to, unsigned lanes, int64_t units)
{
    for (int64_t base = 0; base < units; base += PACK_UNITS * WARP_LANES) {
        const int64_t begin = base + lane_index();
        Unit unit[PACK_UNITS];
#pragma unroll
        for (int i = 0; i < PACK_UNITS; i++)
            if (begin + i * WARP_LANES < units)
                unit[i] = from[begin + i * WARP_LANES];
        for (unsigned left = lanes; left; left &= left - 1) {
            Unit *there =
                (Unit *)__shfl_sync(WARP_ALL, (unsigned long long)to, __ffs((int)left) - 1);
#pragma unroll
            for (int i = 0; i < PACK_UNITS; i++)
                if (begin + i * WARP_LANES < units)
                    there[begin + i * WARP_LANES] = unit[i];
        }
    }
}

// Warp: one token at a time. Lane p looks after destination rank p; ranks beyond 32 take further
// rounds. The first block sends the count records as well. Limit: the link (stores to peers), else
// memory.
template <typename Unit>
__global__ void __launch_bounds__(PACK_THREADS, PACK_BLOCKS)
    pack_kernel(MoePack pack, int64_t units)
{
    const MoeShape &shape = pack.shape;
    if (pack.headers_to && blockIdx.x == 0)
        for (int i = threadIdx.x; i < shape.ranks * shape.count_words; i += blockDim.x)
            pack.counts_to[i / shape.count_words][i % shape.count_words] = pack.counts[i];
    for (int64_t token = warp_index(); token < pack.tokens; token += warp_count()) {
        const Unit *from = (const Unit *)pack.x + token * units;
        for (int base = 0; base < shape.ranks; base += WARP_LANES) {
            const int rank = base + lane_index();
            const int64_t row =
                rank < shape.ranks ? pack.row_of_token[token * shape.ranks + rank] : -1;
            const unsigned lanes = __ballot_sync(WARP_ALL, row >= 0);
            if (pack.rows_to) {
                Unit *to = row >= 0 ? (Unit *)pack.rows_to[rank] + row * units : NULL;
                pack_row<Unit>(from, to, lanes, units);
            }
            for (unsigned left = pack.headers_to ? lanes : 0; left; left &= left - 1)
                pack_header(pack, token, base + __ffs((int)left) - 1);
        }
    }
}

void moe_pack_cuda(const MoePack *args, Stream stream)
{
    const int64_t row_bytes = (int64_t)dtype_bytes(args->dtype, (uint64_t)args->hidden);
    const unsigned grid =
        cuda_grid((args->tokens * WARP_LANES + PACK_THREADS - 1) / PACK_THREADS, PACK_BLOCKS);
    const cudaStream_t handle = cuda_stream(stream);
    if (row_bytes % 16 == 0 && cuda_aligned(args->x))
        pack_kernel<uint4><<<grid, PACK_THREADS, 0, handle>>>(*args, row_bytes / 16);
    else if (args->dtype == DTYPE_F32)
        pack_kernel<uint32_t><<<grid, PACK_THREADS, 0, handle>>>(*args, row_bytes / 4);
    else
        pack_kernel<uint16_t><<<grid, PACK_THREADS, 0, handle>>>(*args, row_bytes / 2);
    CHECK_CUDA(cudaGetLastError());
}

// Rows that an expert with `rows` real rows takes.
__device__ static int32_t maps_padded(int32_t rows, int32_t align)
{
    if (align > 1 && rows == 0)
        return align;
    return (rows + align - 1) / align * align;
}

// The experts' places, computed by every block for itself. Shared out: rows[experts_local],
// first[experts_local + 1], offset[experts_local] = first expert row of those that come from
// `source`.
__device__ static void maps_groups(const MoeMaps &maps, int source, int32_t *rows, int32_t *first,
                                   int32_t *offset)
{
    for (int expert = threadIdx.x; expert < maps.experts_local; expert += blockDim.x) {
        int32_t total = 0, before = 0;
        for (int rank = 0; rank < maps.shape.ranks; rank++) {
            const int32_t count =
                maps.counts[(int64_t)rank * maps.shape.count_words + MOE_COUNT_EXPERTS + expert];
            before += rank < source ? count : 0;
            total += count;
        }
        rows[expert] = total;
        offset[expert] = before;
    }
    __syncthreads();
    if (threadIdx.x < WARP_LANES) { // the first warp scans the padded rows, 32 experts at a time
        int32_t running = 0;
        for (int base = 0; base < maps.experts_local; base += WARP_LANES) {
            const int expert = base + lane_index();
            const int32_t padded =
                expert < maps.experts_local ? maps_padded(rows[expert], maps.align) : 0;
            int32_t sum = padded;
            for (int apart = 1; apart < WARP_LANES; apart *= 2) {
                const int32_t other = __shfl_up_sync(WARP_ALL, sum, apart);
                sum += lane_index() >= apart ? other : 0;
            }
            if (expert < maps.experts_local) {
                first[expert] = running + sum - padded;
                offset[expert] += running + sum - padded;
            }
            running += __shfl_sync(WARP_ALL, sum, WARP_LANES - 1);
        }
        if (lane_index() == 0)
            first[maps.experts_local] = running;
    }
    __syncthreads();
}

__device__ static void maps_set(const MoeMaps &maps, int64_t expert_row, int32_t row,
                                int32_t return_place, float weight)
{
    maps.row_of_expert_row[expert_row] = row;
    maps.return_of_expert_row[expert_row] = return_place;
    maps.weight_of_expert_row[expert_row] = weight;
}

// Everything that is not a real row: the ends of the groups, and what lies behind the last group.
__device__ static void maps_fill(const MoeMaps &maps, const int32_t *rows, const int32_t *first)
{
    const int block = blockIdx.y * gridDim.x + blockIdx.x, blocks = gridDim.x * gridDim.y;
    for (int expert = block; expert < maps.experts_local; expert += blocks)
        for (int64_t row = first[expert] + rows[expert] + threadIdx.x; row < first[expert + 1];
             row += blockDim.x)
            maps_set(maps, row, -1, -1, 0.0f);
    for (int64_t row = first[maps.experts_local] + (int64_t)block * blockDim.x + threadIdx.x;
         row < maps.expert_rows_max; row += (int64_t)blocks * blockDim.x)
        maps_set(maps, row, -1, -1, 0.0f);
}

// blockIdx.y: the source rank; thread: one slot of a received row. Shared: maps_groups' three
// tables.
__global__ void __launch_bounds__(MAPS_THREADS) maps_kernel(MoeMaps maps)
{
    extern __shared__ int32_t table[];
    const MoeShape &shape = maps.shape;
    int32_t *rows = table, *offset = rows + maps.experts_local;
    int32_t *first = offset + maps.experts_local;
    const int64_t source = blockIdx.y;
    maps_groups(maps, (int)source, rows, first, offset);
    if (blockIdx.x == 0 && source == 0) {
        for (int expert = threadIdx.x; expert < maps.experts_local; expert += blockDim.x) {
            maps.group_rows[expert] = rows[expert];
            maps.group_first[expert] = first[expert];
        }
        if (threadIdx.x == 0)
            *maps.rows_total = first[maps.experts_local];
    }
    maps_fill(maps, rows, first);
    const int64_t received = maps.counts[source * shape.count_words + MOE_COUNT_ROWS];
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < received * shape.slots_max;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t row = source * shape.tokens_max + i / shape.slots_max;
        const int slot = (int)(i % shape.slots_max);
        const int32_t *header = maps.headers + row * shape.header_words;
        int32_t expert_row = -1;
        if (slot < header[MOE_HEADER_SLOTS]) {
            const int32_t *of_slot = header + MOE_HEADER_FIXED + MOE_HEADER_PER_SLOT * slot;
            expert_row = offset[of_slot[0]] + of_slot[1];
            maps_set(maps, expert_row, (int32_t)row, header[MOE_HEADER_RETURN_SLOT] + slot,
                     __int_as_float(of_slot[2]));
        }
        maps.expert_row_of_slot[row * shape.slots_max + slot] = expert_row;
    }
}

void moe_maps_cuda(const MoeMaps *args, Stream stream)
{
    const size_t table_bytes = sizeof(int32_t) * (3 * (size_t)args->experts_local + 1);
    CHECK(table_bytes <= SHARED_BYTES_MAX, EXIT_CODE_USAGE, "use more ranks or fewer experts",
          "%d experts on one rank need %zu bytes of shared memory in the maps, there are %d",
          args->experts_local, table_bytes, (int)SHARED_BYTES_MAX);
    const int64_t slots = args->shape.tokens_max * args->shape.slots_max;
    const unsigned most = cuda_grid((slots + MAPS_THREADS - 1) / MAPS_THREADS, 8);
    const unsigned ranks = (unsigned)args->shape.ranks;
    const dim3 grid(most > ranks ? most / ranks : 1, ranks);
    maps_kernel<<<grid, MAPS_THREADS, table_bytes, cuda_stream(stream)>>>(*args);
    CHECK_CUDA(cudaGetLastError());
}
