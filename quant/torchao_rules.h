// torchao_rules.h -- what a torchao folder's config.json says of its weights, as torchao's own
// quantize_ and as transformers read it.
#pragma once

#include "quant/checkpoint.h"

// Local. Whether the weights are quantised as quantization_config says by either reading; error 65
// names the first that is not. Where the two readings differ and it matters, `note` says so, else
// it is empty.
bool torchao_rules_check(const Checkpoint *checkpoint, const Json *config, char *note, size_t bytes,
                         Error *error);
