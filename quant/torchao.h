// torchao.h -- how torchao describes a quantised tensor: the text in the metadata of a safetensors
// file, and the configuration in config.json that made it.
#pragma once

#include "harness/json.h"
#include "quant/stored.h"
#include "quant/torch_file.h"

// One tensor of torchao's classes as files give it.
typedef struct TorchaoTensor {
    const char *path, *parameter; // for messages
    const char *class_name;
    const Json *attributes;
    const TorchPart *part;
    int parts;
    const Tensor *outer; // what the class says of itself; NULL if unknown
} TorchaoTensor;
// Local. Finds the recipe whose tensors look like this and checks every part. Error 65.
bool torchao_read(const TorchaoTensor *tensor, Stored *stored, Error *error);

// Local. The value of the tensor's metadata entry; the caller frees it.
char *torchao_metadata(const Stored *stored);
// Local. The configuration object of a recipe; NULL if torchao has none.
Json *torchao_config(const Recipe *recipe);
// Local. The recipe that a configuration object stands for; false if it is none of ours.
bool torchao_config_read(const Json *config, Recipe *recipe);
