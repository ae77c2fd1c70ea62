// rewrite_torch.h -- shards as torch.save writes them: a pickle and the storages behind it, in a
// zip archive.
#pragma once

#include "experiments/model/rewrite.h"

// Local. Fills the shard's header (everything before the first storage is not all of it: local
// headers stand between storages), places and bytes; adds names to the index's map.
bool rewrite_torch_header(Rewrite *rewrite, RewriteShard *shard, Json *map, Error *error);
// Local. Checks sums of members, which are known only now, and the directory.
bool rewrite_torch_finish(const RewriteShard *shard, const char *path, Error *error);
