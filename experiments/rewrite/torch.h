// torch.h -- shards as torch.save writes them: a pickle and the storages behind it, in a
// zip archive.
#pragma once

#include "experiments/rewrite/rewrite.h"

// Local. Fills the shard's header, pieces, places and bytes; adds names to the index's map.
bool rewrite_torch_header(Rewrite *rewrite, RewriteShard *shard, Json *map, Error *error);
// Local. Check sums of storages, which are known only when all of them are written.
bool rewrite_torch_finish(const RewriteShard *shard, const char *path, Error *error);
