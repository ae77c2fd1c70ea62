// torch_write.h -- the pickle of a pytorch_model.bin: what torch.save would say of these tensors.
#pragma once

#include "quant/stored.h"

typedef struct TorchOutput {
    const char *name;
    Tensor tensor;        // plain: it; else dtype and shape of what it stands for
    const Stored *stored; // NULL: plain
} TorchOutput;

// Local. The pickle; storages are numbered from 0 in the order of the tensors and, in each, of the
// roles that are present. The caller frees it.
char *torch_pickle(const TorchOutput *outputs, int count, uint64_t *bytes);
