// layer.h -- one MoE layer as a problem spread over ranks: where its inputs come from, which rank
// holds which part, and the whole result put together again on rank 0 in a form that does not
// depend on the mesh.
#pragma once

#include "experiments/model/moe.h"
#include "parallel/mesh.h"
#include "quant/safetensors.h"

// The tensors of a layer by their names in files (tests/golden/moe_layers, --save).
typedef enum LayerTensor {
    LAYER_X,
    LAYER_ROUTER,
    LAYER_EXPERT_BIAS,
    LAYER_W1,
    LAYER_W3,
    LAYER_W2,
    LAYER_SHARED_W1,
    LAYER_SHARED_W3,
    LAYER_SHARED_W2,
    LAYER_SHARED_GATE,
    LAYER_GRAD_Y,
    LAYER_TENSORS,
} LayerTensor;
const char *layer_tensor_name(LayerTensor tensor); // Local. "x", "router", ..., "grad_y"

// Where the values come from: a file, or random numbers by global index.
typedef struct LayerSource {
    MoeConfig config;
    int64_t tokens; // of the whole job
    uint64_t seed;
    const Safetensors *file; // NULL = random
} LayerSource;
// Local. Fills config and tokens from a file of tests/golden/moe_layers form. Error 65 names what
// is missing or has the wrong shape. What the file does not say (routing, skew) is left alone.
bool layer_source_read(const Safetensors *file, LayerSource *source, Error *error);
// Local. A tensor's global shape as [rows, columns] (experts' matrices: rows of all experts one
// after another); rows 0 if the layer does not have it.
void layer_tensor_shape(const LayerSource *source, LayerTensor tensor, int64_t *rows,
                        int64_t *columns);
// Waits(stream). Rows first_row .. + rows of a tensor, in `dtype`, into device memory.
void layer_fill(const LayerSource *source, LayerTensor tensor, int64_t first_row, int64_t rows,
                DType dtype, void *out, Stream stream);
// Local. Device memory for the weights (or gradients) of experts first_expert .. + experts; dense
// ones `parts` times.
typedef struct LayerWeightsSize {
    const MoeConfig *config;
    int experts, parts;
    DType experts_dtype, dense_dtype;
    MemoryCategory category;
} LayerWeightsSize;
MoeWeights layer_weights_push(const LayerWeightsSize *size, Arena *arena);
uint64_t layer_weights_bytes(const LayerWeightsSize *size); // Local
// Waits(stream). Fills weights of experts first_expert .. + experts, and the dense ones.
void layer_weights_fill(const LayerSource *source, int first_expert, int experts,
                        const MoeWeights *weights, Stream stream);

// Which rank holds what. Tokens are numbered globally in rank order; a tp group splits its tokens
// over its ranks.
typedef struct LayerSpread {
    const Mesh *mesh;
    MeshAxes experts_axes, replica_axes;           // replicas: the axes not in experts_axes
    int64_t *tokens_of_rank, *first_token_of_rank; // [world ranks]
    int64_t tokens;                                // of all ranks
} LayerSpread;
// Local. tokens_list: "37" for every data rank, or "5,0,3,1", one number per data rank; error 2
// otherwise. tokens_total >= 0 splits that many by the uneven shard rule instead (--load).
bool layer_spread_create(const Mesh *mesh, const char *experts_on, const char *tokens_list,
                         int64_t tokens_total, LayerSpread *spread, Error *error);
// Local. Reads "37" or "5,0,3,1" into one number per data rank, tokens [data_ranks]; error 2.
bool layer_read_tokens(const char *list, int data_ranks, int64_t *tokens, Error *error);
// Local. True when the tokens of every group of ranks that share experts are consecutive in global
// numbering.
bool layer_groups_are_contiguous(const LayerSpread *spread);
void layer_spread_destroy(LayerSpread *spread);

// Results of a layer, whole, in host memory of rank 0: storage dtype, shapes as in files.
typedef enum LayerOutput {
    OUTPUT_Y,
    OUTPUT_EXPERT_OF_TOKEN, // i64 [tokens, top_k]
    OUTPUT_GRAD_X,
    OUTPUT_GRAD_ROUTER,
    OUTPUT_GRAD_W1,
    OUTPUT_GRAD_W3,
    OUTPUT_GRAD_W2,
    OUTPUT_GRAD_SHARED_W1,
    OUTPUT_GRAD_SHARED_W3,
    OUTPUT_GRAD_SHARED_W2,
    OUTPUT_GRAD_SHARED_GATE,
    LAYER_OUTPUTS,
} LayerOutput;
const char *layer_output_name(LayerOutput output); // Local. "y", "expert_of_token", "grad.x", ...
typedef struct LayerResult {
    Tensor tensor[LAYER_OUTPUTS]; // data NULL = the layer does not have it
} LayerResult;
LayerResult layer_result_create(const LayerSource *source, bool forward_only); // Local
void layer_result_destroy(LayerResult *result);

// What one rank has, in device memory.
typedef struct LayerPart {
    const void *y, *dx; // [tokens of the rank, hidden]
    const int32_t *expert_of_choice;
    const MoeWeights *gradients; // storage dtype
    int first_expert, experts;
} LayerPart;
// Collective(all ranks), Waits(stream). Puts the parts together on rank 0 (dense gradients: rank
// 0's own; experts': those of replica 0). result is untouched elsewhere.
void layer_gather(const Run *run, const LayerSpread *spread, const LayerSource *source,
                  const LayerPart *part, LayerResult *result, Stream stream);
// Local. Copies rows of a part's gradients into a whole result (rank 0's own, or a reference's):
// used by gather too.
void layer_place_experts(LayerResult *result, const LayerSource *source, const void *w13,
                         const void *w2, int first_expert, int experts);
void layer_place_dense(LayerResult *result, const LayerSource *source, const void *router,
                       const void *shared_w13, const void *shared_w2);
// Local. Writes every output as f32 (expert_of_token i64).
bool layer_save(const LayerResult *result, const char *path, bool force, Error *error);
