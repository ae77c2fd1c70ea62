// rewrite_torch.c -- writing pytorch_model.bin.
#include "experiments/model/rewrite_torch.h"

bool rewrite_torch_header(Rewrite *rewrite, RewriteShard *shard, Json *map, Error *error)
{
    (void)rewrite, (void)shard, (void)map;
    return error_set(error, EXIT_CODE_USAGE, "write --layout torchao", "not written yet");
}

bool rewrite_torch_finish(const RewriteShard *shard, const char *path, Error *error)
{
    (void)shard, (void)path, (void)error;
    return true;
}
