// torch_log_call.c -- the function that runs the kernels: its buffers (allocation, reuse, views)
// and its calls, in order.
//
//     assert_size_stride(primals_1, (64, 256), (256, 1))
//     buf0 = empty_strided_cuda((64, 512), (512, 1), torch.float32)
//     triton_poi_fused_add_0.run(primals_1, buf0, 32768, stream=stream0)
//     extern_kernels.mm(buf0, reinterpret_tensor(primals_3, (256, 512), (1, 256), 0), out=buf1)
//     buf5 = buf2; del buf2  # reuse
#include "results/graph/torch_log_parser.h"

#include <string.h>

static LogModule *open_module(TorchLog *log, const Stream *stream)
{
    return &log->modules.items[stream->module];
}

// Text that is needed as long as the module's calls are.
static const char *keep_in(const LogModule *module, Slice text)
{
    return text.bytes ? pool_keep(module->pool, text) : "";
}

static LogBuffer *buffer_named(LogModule *module, Slice name, int64_t line)
{
    int64_t index = name_map_find(&module->buffer_of_name, name);
    if (index >= 0)
        return &module->buffers.items[index];
    LogBuffer *buffer = GROW(module->buffers);
    *buffer = (LogBuffer){.name = keep_in(module, name),
                          .sizes = "",
                          .dtype = "",
                          .reuses = "",
                          .elements = -1,
                          .line = line};
    name_map_put(&module->buffer_of_name, buffer->name, module->buffers.count - 1);
    return buffer;
}

// Elements in memory of "(64, 256), (256, 1)": a dimension of stride 0 is there once. -1 when a
// size is a symbol.
static int64_t count_elements(Slice sizes, Slice strides)
{
    int64_t elements = 1, size, stride;
    Slice item, step = {"", 0};
    while (slice_take_item(&sizes, &item)) {
        bool repeated = slice_take_item(&strides, &step) && slice_take_number(&step, &stride) &&
                        stride == 0 && step.bytes == 0;
        if (!slice_take_number(&item, &size) || item.bytes > 0)
            return -1;
        if (repeated || size == 1)
            continue;
        if (size > 0 && elements > INT64_MAX / size)
            return -1;
        elements *= size;
    }
    return elements;
}

static void set_shape(const LogModule *module, LogBuffer *buffer, Slice sizes, Slice strides)
{
    buffer->sizes = keep_in(module, slice_inside(sizes, '('));
    buffer->elements = count_elements(slice_inside(sizes, '('), slice_inside(strides, '('));
}

static void set_dtype(const LogModule *module, LogBuffer *buffer, Slice dtype)
{
    slice_take(&dtype, "dtype=");
    slice_take(&dtype, "torch.");
    if (dtype.bytes == 0)
        return;
    buffer->dtype = keep_in(module, dtype);
    buffer->element_bytes = element_bytes_of(dtype);
}

// empty_strided_cuda((64, 256), (256, 1), torch.float32), rand_strided((..), (..), device=..,
// dtype=..)
static void allocation(const LogModule *module, LogBuffer *buffer, Slice arguments)
{
    Slice sizes = {"", 0}, strides = {"", 0}, item;
    slice_take_item(&arguments, &sizes);
    slice_take_item(&arguments, &strides);
    set_shape(module, buffer, sizes, strides);
    while (slice_take_item(&arguments, &item))
        if (slice_starts(item, "torch.") || slice_starts(item, "dtype="))
            set_dtype(module, buffer, item);
}

// reinterpret_tensor(buf7, (256, 512), (1, 256), 0): the dtype is that of buf7.
static bool view(const LogModule *module, LogBuffer *buffer, Slice expression)
{
    Slice rest = expression, base, sizes = {"", 0}, strides = {"", 0};
    if (!slice_take(&rest, "reinterpret_tensor("))
        return false;
    rest = slice_until(rest, slice_find(rest, "#"));
    slice_take_item(&rest, &base);
    slice_take_item(&rest, &sizes);
    slice_take_item(&rest, &strides);
    int64_t index = name_map_find(&module->buffer_of_name, base);
    buffer->reuses = keep_in(module, base);
    set_shape(module, buffer, sizes, strides);
    if (index >= 0) {
        buffer->dtype = module->buffers.items[index].dtype;
        buffer->element_bytes = module->buffers.items[index].element_bytes;
    }
    return true;
}

// The names and numbers a call begins with, and whether it is one of ours to count.
static bool is_extern(Slice expression)
{
    static const char *const starts[] = {"extern_kernels.", "torch.ops.",  "aten.",
                                         "inductor_ops.",   "_quantized.", "torch._scaled_mm("};
    static const char *const views[] = {"torch.ops.inductor._reinterpret_tensor",
                                        "torch.ops.inductor._alloc_from_pool"};
    for (size_t i = 0; i < COUNT_OF(views); i++)
        if (slice_starts(expression, views[i]))
            return false;
    for (size_t i = 0; i < COUNT_OF(starts); i++)
        if (slice_starts(expression, starts[i]))
            return slice_find_char(expression, '(') < expression.bytes;
    return false;
}

static void add_call(TorchLog *log, Stream *stream, Slice name, int kernel, Slice arguments,
                     Slice result, int64_t line)
{
    PendingComments *pending = &stream->pending;
    LogModule *module = open_module(log, stream);
    LogCall *call = GROW(module->calls);
    *call = (LogCall){.name = keep_in(module, name),
                      .arguments = keep_in(module, arguments),
                      .result = keep_in(module, result),
                      .kernel = kernel,
                      .source_nodes = pending->source_nodes,
                      .original_aten = pending->original_aten,
                      .line = line};
    pending->source_nodes = pending->original_aten = (NameList){NULL, 0, 0};
    pending->fragment.count = 0;
    if (kernel >= 0)
        log->kernels.items[kernel].calls++;
    else
        module->extern_calls++;
}

// K.run(...), K(...), extern_kernels.mm(...): true if the expression is a call of a kernel.
static bool kernel_call(TorchLog *log, Stream *stream, Slice expression, Slice result, int64_t line)
{
    LogModule *module = open_module(log, stream);
    size_t open = slice_find_char(expression, '(');
    Slice arguments = slice_inside(expression, '(');
    if (is_extern(expression)) {
        add_call(log, stream, slice_until(expression, open), -1, arguments, result, line);
        return true;
    }
    Slice rest = expression, name = slice_take_name(&rest);
    int64_t kernel = name.bytes ? name_map_find(&module->kernel_of_name, name) : -1;
    if (kernel < 0 || !(slice_take(&rest, ".run(") || slice_take(&rest, "(")))
        return false;
    add_call(log, stream, name, (int)kernel, arguments, result, line);
    return true;
}

static void assignment(TorchLog *log, Stream *stream, Slice name, Slice expression, int64_t line)
{
    LogModule *module = open_module(log, stream);
    if (kernel_call(log, stream, expression, name, line)) {
        buffer_named(module, name, line);
        return;
    }
    Slice rest = expression, other = slice_take_name(&rest);
    if (slice_starts(other, "empty_strided")) {
        allocation(module, buffer_named(module, name, line), slice_inside(expression, '('));
    } else if (slice_is(other, "reinterpret_tensor")) {
        LogBuffer *buffer = buffer_named(module, name, line);
        view(module, buffer, expression);
    } else if (slice_starts(rest, "; del ") || slice_starts(rest, "[") || rest.bytes == 0) {
        int64_t index = name_map_find(&module->buffer_of_name, other);
        if (index < 0)
            return;
        bool element = slice_starts(rest, "["); // one of several results: another shape
        LogBuffer old = module->buffers.items[index];
        LogBuffer *buffer = buffer_named(module, name, line);
        buffer->reuses = element ? "" : old.name;
        buffer->dtype = element ? "" : old.dtype;
        buffer->sizes = element ? "" : old.sizes;
        buffer->elements = element ? -1 : old.elements;
        buffer->element_bytes = element ? 0 : old.element_bytes;
    }
}

void call_line(TorchLog *log, Stream *stream, Slice text, int64_t line)
{
    LogModule *module = open_module(log, stream);
    Slice rest = text, item;
    if (text.bytes == 0)
        return;
    if (text.at[0] == '#') {
        call_comment(log, stream, text);
        return;
    }
    if (slice_take(&rest, "assert_size_stride(")) {
        Slice sizes = {"", 0}, strides = {"", 0};
        rest = slice_inside(text, '(');
        slice_take_item(&rest, &item);
        slice_take_item(&rest, &sizes);
        slice_take_item(&rest, &strides);
        set_shape(module, buffer_named(module, item, line), sizes, strides);
        return;
    }
    if (kernel_call(log, stream, text, (Slice){"", 0}, line))
        return;
    Slice name = slice_take_name(&rest);
    if (name.bytes && slice_take(&rest, " = "))
        assignment(log, stream, name, rest, line);
}

// primals_1 = rand_strided((64, 256), (256, 1), device='cuda:0', dtype=torch.float32): arguments
// have no dtype in call() itself.
void benchmark_line(TorchLog *log, Stream *stream, Slice text)
{
    LogModule *module = open_module(log, stream);
    Slice rest = text, name = slice_take_name(&rest);
    if (name.bytes && slice_take(&rest, " = rand_strided("))
        allocation(module, buffer_named(module, name, 0), slice_inside(text, '('));
}
