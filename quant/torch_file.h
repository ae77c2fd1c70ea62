// torch_file.h -- pytorch_model.bin: a zip archive with one pickle and the bytes it speaks of.
//
// Plain tensors, and torchao's tensor classes as their parts and attributes; the attributes have
// the form that torchao gives them in the metadata of a safetensors file, so that both are read by
// the same code. Source: PyTorch, torch/serialization.py and torch/_utils.py.
#pragma once

#include "harness/json.h"
#include "harness/tensor.h"
#include "quant/pickle.h"
#include "quant/zip.h"

enum { TORCH_PARTS_MAX = 8, TORCH_NAME_BYTES = 64 };

typedef struct TorchPart {
    char name[TORCH_NAME_BYTES]; // "qdata"
    Tensor tensor;
} TorchPart;

typedef struct TorchTensor {
    const char *name;                  // of the parameter
    char class_name[TORCH_NAME_BYTES]; // "" = a plain tensor
    Tensor tensor;                     // plain: the values; else only dtype and shape
    int parts;
    TorchPart part[TORCH_PARTS_MAX];
    Json *attributes;
} TorchTensor;

typedef struct TorchFile {
    Zip zip;
    Pickle *pickle;
    int64_t count;
    TorchTensor *tensors; // in the order of the file
    int64_t copies;
    void **copy; // of tensors whose strides are not those of a plain array
} TorchFile;

// Local. Errors: 66 not there, 65 with the file and the rule that broke. Nothing is executed.
bool torch_file_open(const char *path, TorchFile *file, Error *error);
// Local. The same from memory, which must outlive the value.
bool torch_file_parse(const char *path, const uint8_t *data, uint64_t bytes, TorchFile *file,
                      Error *error);
void torch_file_close(TorchFile *file);
