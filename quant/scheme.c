// scheme.c -- what torchao's files and compressed-tensors' make of each recipe.
//
// Sources: torchao 0.18 (prototype/safetensors), compressed-tensors 0.20 (quantization/
// quant_scheme.py). Rows say only how things lie; numbers are the recipe's.
#include "quant/stored.h"

#include <string.h>

const Scheme scheme_table[] = {
    {"fp8_row", "Float8Tensor", "FP8_DYNAMIC", PACK_FLOAT, "FP8_DYNAMIC", NULL},
    {"fp8_tensor", "Float8Tensor", "FP8_TENSOR_DYNAMIC", PACK_FLOAT, NULL, NULL},
    {"fp8_block", "Float8Tensor", "FP8_BLOCK", PACK_FLOAT, "FP8_BLOCK", NULL},
    {"fp8_weight_only", "Float8Tensor", "FP8A16", PACK_FLOAT, NULL, NULL},
    {"int8_weight_only", "Int8Tensor", "W8A16", PACK_WORDS, NULL, NULL},
    {"int8_dynamic", "Int8Tensor", "W8A8", PACK_INT, "W8A8", NULL},
    {"int4_weight_only", "Int4Tensor", NULL, PACK_WORDS, NULL, NULL},
    {"int4_tile", "Int4TilePackedTo4dTensor", NULL, PACK_WORDS, NULL, NULL},
    {"int8_int4", "IntxUnpackedToInt8Tensor", "W4A8", PACK_WORDS, NULL, NULL},
    {"mxfp8", "MXTensor", "MXFP8", PACK_MXFP8, "MXFP8", NULL},
    {"mxfp4", "MXTensor", "MXFP4", PACK_MXFP4, "MXFP4", NULL},
    {"nvfp4", "NVFP4Tensor", "NVFP4", PACK_NVFP4, "NVFP4", NULL},
    {"nvfp4_one_level", "NVFP4Tensor", "NVFP4", PACK_NVFP4, "NVFP4", NULL},
    {"nvfp4_weight_only", "NVFP4Tensor", "NVFP4A16", PACK_NVFP4, "NVFP4A16", NULL},
    {"fp8_int4", "Int4Tensor", "W4AFP8", PACK_WORDS, NULL, NULL},
    {"FP8_DYNAMIC", NULL, "FP8_DYNAMIC", PACK_FLOAT, NULL, "fp8_row"},
    {"FP8_BLOCK", NULL, "FP8_BLOCK", PACK_FLOAT, NULL, "fp8_block"},
    {"W8A8", NULL, "W8A8", PACK_INT, NULL, "int8_dynamic"},
    {"W8A16", NULL, "W8A16", PACK_WORDS, NULL, NULL},
    {"W4A16", NULL, "W4A16", PACK_WORDS, NULL, "int4_weight_only"},
    {"W4A16_ASYM", NULL, "W4A16_ASYM", PACK_WORDS, NULL, NULL},
    {"W4A8", NULL, "W4A8", PACK_INT, NULL, "int8_int4"},
    {"W4AFP8", NULL, "W4AFP8", PACK_INT, NULL, "fp8_int4"},
    {"NVFP4", NULL, "NVFP4", PACK_NVFP4, NULL, "nvfp4"},
    {"NVFP4A16", NULL, "NVFP4A16", PACK_NVFP4, NULL, "nvfp4_weight_only"},
    {"MXFP4", NULL, "MXFP4", PACK_MXFP4, NULL, "mxfp4"},
    {"MXFP4A16", NULL, "MXFP4A16", PACK_MXFP4, NULL, NULL},
    {"MXFP8", NULL, "MXFP8", PACK_MXFP8, NULL, "mxfp8"},
    {"MXFP8A16", NULL, "MXFP8A16", PACK_MXFP8, NULL, NULL},
    {NULL, NULL, NULL, PACK_FLOAT, NULL, NULL},
};

const char *layout_name(Layout layout)
{
    static const char *const names[LAYOUTS] = {
        [LAYOUT_PLAIN] = "bf16",
        [LAYOUT_TORCHAO] = "torchao",
        [LAYOUT_TORCHAO_BIN] = "torchao-bin",
        [LAYOUT_COMPRESSED] = "compressed-tensors",
        [LAYOUT_DEEPSEEK] = "deepseek",
    };
    return names[layout];
}

const char *pack_format_name(PackFormat format)
{
    static const char *const names[PACK_FORMATS] = {
        [PACK_FLOAT] = "float-quantized",      [PACK_INT] = "int-quantized",
        [PACK_WORDS] = "pack-quantized",       [PACK_NVFP4] = "nvfp4-pack-quantized",
        [PACK_MXFP4] = "mxfp4-pack-quantized", [PACK_MXFP8] = "mxfp8-quantized",
    };
    return names[format];
}

const Scheme *scheme_find(const char *recipe)
{
    for (const Scheme *row = scheme_table; row->recipe; row++)
        if (strcmp(row->recipe, recipe) == 0)
            return row;
    return NULL;
}

PackFormat scheme_format(const Recipe *recipe)
{
    const Scheme *row = scheme_find(recipe->name);
    bool own = recipe->weights.code == CODE_INT4 && recipe->activations.method != QUANT_NONE &&
               recipe->weights.block_columns == 128 && row->class_name;
    return own ? PACK_INT : row->format;
}

bool scheme_has(const Scheme *row, Layout layout)
{
    if (layout == LAYOUT_TORCHAO || layout == LAYOUT_TORCHAO_BIN)
        return row && row->class_name;
    if (layout == LAYOUT_COMPRESSED)
        return row && row->scheme;
    return false;
}
