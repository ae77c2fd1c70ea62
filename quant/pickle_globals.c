// pickle_globals.c -- the names that a pickle of tensors may speak of. They are never looked up in
// anything that could be run; a name that is not here is refused where it stands.
//
// Source: what torch.save writes for tensors (PyTorch, torch/_utils.py, torch/storage.py).
#include "quant/pickle.h"

#include <string.h>

// Beside these, every class of torchao, whatever its module is called.
static const char *const globals[] = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_wrapper_subclass",
    "torch._tensor _rebuild_from_type_v2",
    "torch.serialization _get_layout",
    "torch.nn.parameter Parameter",
    "torch.storage UntypedStorage",
    "torch Size",
    "torch device",
    "collections OrderedDict",
    "__builtin__ getattr",
    "builtins getattr",
    "torch ByteStorage",
    "torch CharStorage",
    "torch ShortStorage",
    "torch IntStorage",
    "torch LongStorage",
    "torch FloatStorage",
    "torch DoubleStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
    "torch BoolStorage",
    "torch bfloat16",
    "torch float16",
    "torch float32",
    "torch float64",
    "torch float8_e4m3fn",
    "torch float8_e5m2",
    "torch float8_e4m3fnuz",
    "torch float8_e5m2fnuz",
    "torch float8_e8m0fnu",
    "torch float4_e2m1fn_x2",
    "torch int4",
    "torch uint4",
    "torch int8",
    "torch int16",
    "torch int32",
    "torch int64",
    "torch uint8",
    "torch uint16",
    "torch uint32",
    "torch uint64",
    "torch bool",
};

bool pickle_allows(const char *module, const char *name, const char *both)
{
    for (size_t i = 0; i < COUNT_OF(globals); i++)
        if (strcmp(globals[i], both) == 0)
            return true;
    bool torchao = strcmp(module, "torchao") == 0 || strncmp(module, "torchao.", 8) == 0;
    for (const char *c = name; torchao && *c; c++)
        torchao = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || *c == '_' ||
                  (*c >= '0' && *c <= '9');
    return torchao && *name != '\0';
}
