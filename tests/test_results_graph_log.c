// What the log parser finds: counted by hand in real logs, and in lines as other releases,
// launchers and programs print them; nothing that is fed makes it stop.
#include "harness/json.h"
#include "results/graph/torch_log_show.h"
#include "tests/capture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/random.h>

#include <cmocka.h>

static const char *golden(const char *name)
{
    static char path[1024];
    const char *folder = getenv("MESHWORK_GOLDEN");
    snprintf(path, sizeof(path), "%s/torch_logs/%s", folder ? folder : "tests/golden", name);
    return path;
}

static TorchLog *read_golden_as(const char *name, bool brief)
{
    TorchLog *log = torch_log_create();
    Error error = {0};
    log->brief = brief;
    if (!torch_log_read(log, golden(name), 0, &error))
        fail_msg("%s", error.what);
    torch_log_finish(log);
    return log;
}

static TorchLog *read_golden(const char *name)
{
    return read_golden_as(name, false);
}

static TorchLog *read_text(const char *text)
{
    TorchLog *log = torch_log_create();
    torch_log_begin_file(log, "text", 0);
    torch_log_feed(log, text, strlen(text));
    torch_log_end_file(log);
    torch_log_finish(log);
    return log;
}

// kind id placeholders operations outputs, each as one word.
static void describe_graphs(const TorchLog *log, char *text, size_t bytes)
{
    text[0] = '\0';
    for (int64_t g = 0; g < log->graphs.count; g++) {
        const TracedGraph *graph = &log->graphs.items[g];
        size_t length = strlen(text);
        if (graph->parent < 0)
            snprintf(text + length, bytes - length, "%s%s%lld:%lld/%lld/%lld", length ? " " : "",
                     graph_kind_name(graph->kind), (long long)graph->id,
                     (long long)graph->placeholders, (long long)graph->operations,
                     (long long)graph->outputs);
    }
}

static void describe_kernels(const TorchLog *log, char *text, size_t bytes)
{
    text[0] = '\0';
    for (int64_t k = 0; k < log->kernels.count; k++) {
        const LogKernel *kernel = &log->kernels.items[k];
        size_t length = strlen(text);
        snprintf(text + length, bytes - length, "%s%s/%s*%lld", length ? " " : "",
                 log->modules.items[kernel->module].aot_id, kernel->kind, (long long)kernel->calls);
    }
}

// Counted by hand: lines that assign in a body, names in a signature, values in a return.
static const struct {
    const char *file, *graphs, *kernels;
    int extern_calls;
} counts[] = {
    {"fp8.short.txt", "inference0:2/23/1",
     "0_inference/persistent_reduction*1 0_inference/persistent_reduction*1", 1},
    {"fp8.prefix.txt", "", "0_inference/persistent_reduction*1 0_inference/persistent_reduction*1",
     1},
    {"infer.short.txt", "inference0:5/18/1",
     "0_inference/persistent_reduction*1 0_inference/pointwise*1", 3},
    {"infer.prefix.txt", "", "0_inference/persistent_reduction*1 0_inference/pointwise*1", 3},
    {"infercpu.short.txt", "inference0:5/18/1", "0_inference/cpp*1 0_inference/cpp*1", 3},
    {"infercpu.prefix.txt", "", "0_inference/cpp*1 0_inference/cpp*1", 3},
    {"layernorm.short.txt", "forward0:5/11/6 backward0:6/12/5",
     "0_forward/persistent_reduction*1 0_backward/reduction*1 0_backward/persistent_reduction*2 "
     "0_backward/reduction*1 0_backward/persistent_reduction*1",
     3},
    {"layernorm.prefix.txt", "",
     "0_forward/persistent_reduction*1 0_backward/reduction*1 0_backward/persistent_reduction*2 "
     "0_backward/reduction*1 0_backward/persistent_reduction*1",
     3},
    {"train.short.txt", "forward0:9/36/20 backward0:20/81/9",
     "0_forward/persistent_reduction*1 0_forward/pointwise*2 0_forward/persistent_reduction*1 "
     "0_backward/pointwise*2 0_backward/persistent_reduction*1 0_backward/persistent_reduction*1",
     18},
    {"train.prefix.txt", "",
     "0_forward/persistent_reduction*1 0_forward/pointwise*2 0_forward/persistent_reduction*1 "
     "0_backward/pointwise*2 0_backward/persistent_reduction*1 0_backward/persistent_reduction*1",
     18},
    {"joint-recompiled.short.txt",
     "joint0:9/52/9 forward0:8/15/10 backward0:10/33/8 joint1:10/50/10 forward1:9/15/10 "
     "backward1:10/30/9",
     "0_forward/cpp*1 0_forward/cpp*1 0_backward/cpp*1 0_backward/cpp*1 0_backward/cpp*1 "
     "1_forward/cpp*1 1_forward/cpp*1 1_backward/cpp*1 1_backward/cpp*1 1_backward/cpp*1",
     11},
    {"cpu-profiled.prefix.txt", "inference0:3/12/1", "0_inference/cpp*1", 1},
    {"release24.prefix.txt", "joint0:5/41/6 forward0:4/17/9 backward0:8/25/4",
     "0_forward/cpp*1 0_backward/cpp*1", 3},
    {"release26.short.txt", "inference0:3/18/3 inference1:2/12/6",
     "0_inference/persistent_reduction*1 0_inference/persistent_reduction*1 "
     "0_inference/reduction*1 1_inference/reduction*1 1_inference/persistent_reduction*1 "
     "1_inference/reduction*1 1_inference/pointwise*1 1_inference/pointwise*1",
     2},
    {"dynamic.short.txt", "joint0:11/50/11 joint1:10/50/10 forward1:9/15/10 backward1:10/30/9",
     "1_forward/cpp*1 1_forward/cpp*1 1_backward/cpp*1 1_backward/cpp*1 1_backward/cpp*1", 5},
    {"breaks.prefix.txt",
     "inference0:1/3/1 inference1:1/3/1 inference2:3/3/1 inference3:2/3/1 inference4:3/3/1 "
     "inference5:2/3/1",
     "0_inference/cpp*1 1_inference/cpp*1 2_inference/cpp*1 3_inference/cpp*1 4_inference/cpp*1 "
     "5_inference/cpp*1",
     0},
    {"higher-order.prefix.txt", "inference0:1/6/1",
     "0_inference/cpp*1 0_inference/cpp*1 0_inference/cpp*1", 0},
    {"many-outputs.short.txt", "inference0:2/14/6", "0_inference/cpp*1 0_inference/cpp*1", 3},
};

static void real_logs_give_what_was_counted(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        char graphs[1024], kernels[2048];
        TorchLog *log = read_golden(counts[i].file);
        describe_graphs(log, graphs, sizeof(graphs));
        describe_kernels(log, kernels, sizeof(kernels));
        if (strcmp(graphs, counts[i].graphs) != 0)
            fail_msg("%s: graphs '%s', expected '%s'", counts[i].file, graphs, counts[i].graphs);
        if (strcmp(kernels, counts[i].kernels) != 0)
            fail_msg("%s: kernels '%s', expected '%s'", counts[i].file, kernels, counts[i].kernels);
        if (torch_log_extern_calls(log) != counts[i].extern_calls)
            fail_msg("%s: %lld extern calls, expected %d", counts[i].file,
                     (long long)torch_log_extern_calls(log), counts[i].extern_calls);
        if (log->lines.unknown > 0)
            fail_msg("%s:%lld: not understood: %s", counts[i].file, (long long)log->unknown[0].line,
                     log->unknown[0].text);
        assert_int_equal(log->lines.read,
                         log->lines.understood + log->lines.noise + log->lines.unknown);
        torch_log_destroy(log);
    }
}

// What --json shows without a page comes from a log that keeps no code, nodes and calls.
static void a_brief_log_reports_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        TorchLog *whole = read_golden(counts[i].file),
                 *brief = read_golden_as(counts[i].file, true);
        Json *report = torch_log_json(whole), *other = torch_log_json(brief);
        char *a = json_print(report, true), *b = json_print(other, true);
        assert_string_equal(a, b);
        for (int64_t m = 0; m < brief->modules.count; m++)
            assert_int_equal(brief->modules.items[m].calls.count, 0);
        free(a);
        free(b);
        json_destroy(report);
        json_destroy(other);
        torch_log_destroy(whole);
        torch_log_destroy(brief);
    }
}

static char *kernels_text(const TorchLog *log)
{
    Json *report = torch_log_json(log), *copy = json_array();
    const Json *kernels = json_find(report, "kernels");
    for (uint64_t k = 0; k < json_count(kernels); k++) {
        const Json *kernel = json_at(kernels, k);
        static const char *const keys[] = {"name", "kind", "graph", "source_nodes",
                                           "original_aten"};
        for (size_t i = 0; i < COUNT_OF(keys); i++) {
            char *text = json_print(json_find(kernel, keys[i]), false);
            json_append(copy, json_text(text));
            free(text);
        }
        json_append(copy, json_integer(json_integer_of(json_find(kernel, "calls"))));
    }
    char *text = json_print(copy, false);
    json_destroy(copy);
    json_destroy(report);
    return text;
}

static void both_forms_of_a_program_give_the_same_kernels(void **state)
{
    (void)state;
    static const char *const programs[] = {"fp8", "infer", "infercpu", "layernorm", "train"};
    for (size_t i = 0; i < COUNT_OF(programs); i++) {
        char name[64];
        snprintf(name, sizeof(name), "%s.short.txt", programs[i]);
        TorchLog *brief = read_golden(name);
        snprintf(name, sizeof(name), "%s.prefix.txt", programs[i]);
        TorchLog *prefixed = read_golden(name);
        char *a = kernels_text(brief), *b = kernels_text(prefixed);
        assert_string_equal(a, b);
        free(a);
        free(b);
        torch_log_destroy(brief);
        torch_log_destroy(prefixed);
    }
}

static const GraphNode *node_named(const TracedGraph *graph, const char *name)
{
    int64_t index = name_map_find(&graph->node_of_name, slice_of(name));
    assert_true(index >= 0);
    return &graph->nodes.items[index];
}

static void nodes_carry_their_inputs_shapes_and_places(void **state)
{
    (void)state;
    TorchLog *log = read_golden("train.short.txt");
    const TracedGraph *graph = &log->graphs.items[0];
    const GraphNode *mul = node_named(graph, "mul_2");
    assert_string_equal(mul->target, "torch.ops.aten.mul.Tensor");
    assert_string_equal(mul->arguments, "div, mm_1");
    assert_string_equal(mul->hint, "f32[64, 512][512, 1]cuda:0");
    assert_int_equal(mul->inputs.count, 2);
    const int *inputs = graph->inputs.items + mul->inputs.first;
    assert_string_equal(graph->nodes.items[inputs[0]].name, "div");
    assert_string_equal(graph->nodes.items[inputs[1]].name, "mm_1");
    const SourcePlace *place = &graph->places.items[mul->place];
    assert_string_equal(place->file, "/home/user/prog.py");
    assert_int_equal(place->line, 9);
    assert_string_equal(place->function, "forward");
    ASSERT_CONTAINS(place->code, "y = s.n(x); return x + s.d(F.silu(s.g(y)) * s.u(y))");
    torch_log_destroy(log);
}

static void kernels_are_joined_with_their_nodes_and_bytes(void **state)
{
    (void)state;
    TorchLog *log = read_golden("train.short.txt");
    const LogKernel *silu = &log->kernels.items[1];
    const LogModule *module = &log->modules.items[silu->module];
    assert_string_equal(silu->name, "triton_poi_fused_mul_silu_1");
    assert_string_equal(module->aot_id, "0_forward");
    assert_int_equal(module->graph, 0);
    assert_true(silu->nodes.count >= 5);
    assert_string_equal(log->graphs.items[0].nodes.items[silu->nodes.items[0]].name, "neg");
    // in: two f32[64, 512], out: one.
    assert_true(log->kernels.items[1].read_bytes == 2 * 64 * 512 * 4);
    assert_true(log->kernels.items[1].written_bytes == 64 * 512 * 4);
    // extern_kernels.mm(buf2, reinterpret_tensor(primals_3, (256, 512), (1, 256), 0), out=buf3)
    const LogCall *mm = &module->calls.items[1];
    assert_string_equal(mm->name, "extern_kernels.mm");
    assert_true(mm->read_bytes == (64 * 256 + 256 * 512) * 4);
    assert_true(mm->written_bytes == 64 * 512 * 4);
    assert_int_equal(mm->nodes.count, 1);
    assert_string_equal(log->graphs.items[0].nodes.items[mm->nodes.items[0]].name, "mm");
    torch_log_destroy(log);
    log = read_golden("dynamic.short.txt");
    assert_true(isnan(log->kernels.items[0].read_bytes)); // a size is a symbol
    torch_log_destroy(log);
}

// ---- other releases, launchers and programs ----

#define GRAPH_BODY                                                                                 \
    " <eval_with_key>.1 class GraphModule(torch.nn.Module):\n"                                     \
    "    def forward(self, a: \"f32[2]\", b: \"f32[2]\"):\n"                                       \
    "        # File: m.py:3 in f, code: return a + b\n"                                            \
    "        add: \"f32[2]\" = torch.ops.aten.add.Tensor(a, b);  a = b = None\n"                   \
    "        return (add, None)\n\n"

static const struct {
    const char *what, *text, *graphs;
    int unknown;
} texts[] = {
    {"2.0",
     "[2023-04-10 12:28:11,630] torch._functorch.aot_autograd.__aot_graphs: [INFO] TRACED "
     "GRAPH\n"
     "[2023-04-10 12:28:11,630] torch._functorch.aot_autograd.__aot_graphs: [INFO]  ====== "
     "Forward graph 1 ======\n"
     "[2023-04-10 12:28:11,630] torch._functorch.aot_autograd.__aot_graphs: [INFO]  "
     "<eval_with_key>.5 class GraphModule(torch.nn.Module):\n"
     "[2023-04-10 12:28:11,630] torch._functorch.aot_autograd.__aot_graphs: [INFO]     def "
     "forward(self, permute: f32[2, 4], x: f32[4]):\n"
     "[2023-04-10 12:28:11,630] torch._functorch.aot_autograd.__aot_graphs: [INFO]         "
     "mul: f32[2, 4] = torch.ops.aten.mul.Tensor(permute, x);  permute = None\n"
     "[2023-04-10 12:28:11,630] torch._functorch.aot_autograd.__aot_graphs: [INFO]         "
     "return [mul]\n",
     "forward1:2/1/1", 0},
    {"a rank, spaces stripped by an editor",
     "[rank3]:I1206 15:18:15.925000 15 torch/x.py:20] [0/0] [__aot_graphs] TRACED GRAPH\n"
     "[rank3]:I1206 15:18:15.925000 15 torch/x.py:20] [0/0] [__aot_graphs]  ===== Backward graph 7 "
     "=====\n"
     "[rank3]:I1206 15:18:15.925000 15 torch/x.py:20] [0/0] [__aot_graphs]  class "
     "GraphModule(torch.nn.Module):\n"
     "[rank3]:I1206 15:18:15.925000 15 torch/x.py:20] [0/0] [__aot_graphs]     def forward(self):\n"
     "[rank3]:I1206 15:18:15.925000 15 torch/x.py:20] [0/0] [__aot_graphs]\n"
     "[rank3]:I1206 15:18:15.925000 15 torch/x.py:20] [0/0] [__aot_graphs]         return ()\n",
     "backward7:0/0/0", 0},
    {"short, warnings and prints within",
     "step 1 loss 2.5\n"
     "INFO:torch.a.__aot_graphs:TRACED GRAPH\n"
     " ===== Forward graph 0 =====\n"
     "/x/y.py:12: UserWarning: mind the gap\n"
     "  warnings.warn(\n" GRAPH_BODY "loss 2.5\n",
     "forward0:2/1/2", 2},
    {"a warning in front of the next message, after generated code",
     "DEBUG:torch.a.__output_code:Output code:\ndef call(args):\n    return ()\n"
     "INFO:torch.a.__aot_graphs:TRACED GRAPH\n ===== Forward graph 0 =====\n" GRAPH_BODY
     "/x/y.py:12: UserWarning: mind the gap\n  warnings.warn(\n",
     "forward0:2/1/2", 0},
    {"custom format", "12:01 torch INFO TRACED GRAPH\n ===== Forward graph 0 =====\n" GRAPH_BODY,
     "forward0:2/1/2", 0},
    {"colours and Windows line ends",
     "INFO:torch.a.__aot_graphs:TRACED GRAPH\r\n"
     " ===== Forward graph 0 =====\r\n"
     " class GraphModule(torch.nn.Module):\r\n"
     "    def forward(self, a: \"\x1b[31mf32\x1b[0m\x1b[34m[2]\x1b[0m\"):\r\n"
     "        sin: \"\x1b[31mf32\x1b[0m[2]\" = torch.ops.aten.sin.default(a);  a = None\r\n"
     "        return (sin,)\r\n",
     "forward0:1/1/1", 0},
    {"post-grad graphs are not ours",
     "INFO:torch.a.__post_grad_graphs:TRACED GRAPH\n ===== AFTER POST GRAD =====\n" GRAPH_BODY
     "INFO:torch.a.__graph_code:TRACED GRAPH\n ===== __compiled_fn_1 =====\n" GRAPH_BODY,
     "", 0},
    {"one argument per line with roles, several outputs, no hints",
     "INFO:torch.a.__aot_graphs:TRACED GRAPH\n ===== Forward graph 2 =====\n"
     " class GraphModule(torch.nn.Module):\n"
     "    def forward(\n"
     "        self,\n"
     "        primals_1: \"f32[2, 3]\",  # ParamAOTInput(target='experts.weight')\n"
     "        primals_2: \"Sym(s0)\",\n"
     "    ):\n"
     "        var_mean = torch.ops.aten.var_mean.correction(primals_1, [1]);  primals_1 = None\n"
     "        getitem: \"f32[2]\" = var_mean[0];  var_mean = None\n"
     "        mul: \"Sym(2*s0)\" = 2 * primals_2;  primals_2 = None\n"
     "        return (getitem, (mul, [None]), 3)\n",
     "forward2:2/3/4", 0},
    {"cut off",
     "INFO:torch.a.__aot_graphs:TRACED GRAPH\n ===== Forward graph 0 =====\n"
     " class GraphModule(torch.nn.Module):\n    def forward(self, a: \"f32[2]\", b: \"f32[",
     "forward0:2/0/0", 0},
    {"srun labels, two ranks interleaved",
     "0: INFO:torch.a.__aot_graphs:TRACED GRAPH\n"
     "1: INFO:torch.a.__aot_graphs:TRACED GRAPH\n"
     "0:  ===== Forward graph 0 =====\n"
     "1:  ===== Forward graph 1 =====\n"
     "1:  class GraphModule(torch.nn.Module):\n"
     "0:  class GraphModule(torch.nn.Module):\n"
     "0:     def forward(self, a: \"f32[2]\"):\n"
     "1:     def forward(self, a: \"f32[2]\", b: \"f32[2]\"):\n"
     "0:         return (a,)\n"
     "1:         return (a, b)\n",
     "forward0:1/0/1 forward1:2/0/2", 0},
    {"mpirun --tag-output",
     "[1,5]<stderr>:INFO:torch.a.__aot_graphs:TRACED GRAPH\n"
     "[1,5]<stderr>: ===== Forward graph 4 =====\n"
     "[1,5]<stderr>: class GraphModule(torch.nn.Module):\n"
     "[1,5]<stderr>:    def forward(self, a: \"f32[2]\"):\n"
     "[1,5]<stderr>:        return (a,)\n",
     "forward4:1/0/1", 0},
};

static void every_form_is_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        char graphs[512];
        TorchLog *log = read_text(texts[i].text);
        describe_graphs(log, graphs, sizeof(graphs));
        if (strcmp(graphs, texts[i].graphs) != 0)
            fail_msg("%s: '%s', expected '%s'", texts[i].what, graphs, texts[i].graphs);
        if (log->lines.unknown != texts[i].unknown)
            fail_msg("%s: %lld lines not understood, expected %d; first: %s", texts[i].what,
                     (long long)log->lines.unknown, texts[i].unknown,
                     log->unknown_count ? log->unknown[0].text : "");
        torch_log_destroy(log);
    }
}

static void ranks_come_from_the_line_or_the_file(void **state)
{
    (void)state;
    TorchLog *log = read_text(texts[1].text);
    assert_int_equal(log->graphs.items[0].rank, 3);
    torch_log_destroy(log);
    log = read_text(texts[10].text);
    assert_int_equal(log->graphs.items[0].rank, 5);
    torch_log_destroy(log);
    log = torch_log_create();
    for (int rank = 0; rank < 2; rank++) {
        torch_log_begin_file(log, "part", rank);
        torch_log_feed(log, texts[4].text, strlen(texts[4].text));
        torch_log_end_file(log);
    }
    torch_log_finish(log);
    assert_int_equal(log->graphs.count, 2);
    assert_int_equal(log->graphs.items[1].rank, 1);
    torch_log_destroy(log);
}

static void roles_of_parameters_are_kept(void **state)
{
    (void)state;
    TorchLog *log = read_text(texts[7].text);
    ASSERT_CONTAINS(node_named(&log->graphs.items[0], "primals_1")->note, "experts.weight");
    torch_log_destroy(log);
}

#define CALL_FORM(call)                                                                            \
    "Output code:\n# AOT ID: ['3_forward']\nfrom torch import device\n"                            \
    "# Original path: /home/user/k.py:7\n"                                                         \
    "mine_0 = async_compile.triton('mine', '''\n"                                                  \
    "@triton_heuristics.user_autotune(\n"                                                          \
    "    triton_meta={'signature': {0: '*fp32', 1: '*bf16', 2: 'i32'}},\n"                         \
    "    inductor_meta={'mutated_arg_names': ['dst']}\n)\n"                                        \
    "def mine(src, dst, n, BLOCK : tl.constexpr):\n    pass\n''', device_str='cuda')\n"            \
    "async_compile.wait(globals())\n" call "        x, = args\n"                                   \
    "        assert_size_stride(x, (8, 4), (4, 1))\n"                                              \
    "        buf0 = empty_strided_cuda((8, 4), (0, 1), torch.bfloat16)\n"                          \
    "        mine_0.run(x, buf0, 32, grid=grid(32), stream=stream0)\n"                             \
    "        buf1 = torch.ops.mylib.op.default(buf0)\n"                                            \
    "        buf2 = buf1[0]\n"                                                                     \
    "        del buf0\n"                                                                           \
    "        return (buf2, )\n"

static void both_forms_of_call_are_read(void **state)
{
    (void)state;
    static const char *const forms[] = {
        "DEBUG:torch._inductor.graph.__output_code:" CALL_FORM("def call(args):\n"),
        "DEBUG:torch._inductor.graph.__output_code:" CALL_FORM(
            "class Runner:\n    def __init__(self, partitions):\n        self.p = partitions\n\n"
            "    def call(self, args):\n"),
        "DEBUG:torch._inductor.graph.__output_code:" CALL_FORM("def partition_0(args):\n"),
    };
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
        TorchLog *log = read_text(forms[i]);
        assert_int_equal(log->kernels.count, 1);
        const LogKernel *kernel = &log->kernels.items[0];
        assert_string_equal(kernel->name, "mine_0");
        assert_string_equal(kernel->device_name, "mine");
        assert_string_equal(kernel->kind, "user_defined");
        assert_string_equal(kernel->user_file, "/home/user/k.py");
        assert_int_equal(kernel->user_line, 7);
        assert_int_equal(kernel->calls, 1);
        assert_int_equal(torch_log_extern_calls(log), 1);
        assert_string_equal(log->modules.items[0].aot_id, "3_forward");
        assert_true(log->kernels.items[0].read_bytes ==
                    8 * 4 * 4 + 4 * 2); // dst is read and written
        assert_true(log->kernels.items[0].written_bytes ==
                    4 * 2); // the broadcast dimension is there once
        assert_int_equal(log->lines.unknown, 0);
        torch_log_destroy(log);
    }
}

// What a program prints while its short log goes on stands between the lines of a function.
static void prints_do_not_end_a_function(void **state)
{
    (void)state;
    TorchLog *log = read_text("DEBUG:a.b:Output code:\n# AOT ID: ['0_forward']\n"
                              "k_0 = async_compile.triton('k_0', '''\npass\n''')\n"
                              "class Runner:\n    def call(self, args):\n"
                              "        k_0.run(a, b)\n"
                              "step 3, loss: 2.5\n"
                              "loss: 2.5\n"
                              "        extern_kernels.mm(a, b, out=c)\n"
                              "/x/y.py:3: UserWarning: mind the gap\n  warnings.warn(\n"
                              "        k_0.run(a, b)\n"
                              "        return (c, )\n\n"
                              "runner = Runner(partitions=[])\n");
    assert_int_equal(log->kernels.items[0].calls, 2);
    assert_int_equal(torch_log_extern_calls(log), 1);
    assert_int_equal(log->lines.unknown, 2);
    torch_log_destroy(log);
}

// Calls without the arguments they should have.
static void empty_brackets_are_survived(void **state)
{
    (void)state;
    TorchLog *log = read_text("DEBUG:a.b:Output code:\n# AOT ID: []\ndef call(args):\n"
                              "    assert_size_stride()\n    buf0 = empty_strided_cuda()\n"
                              "    buf1 = reinterpret_tensor()\n    extern_kernels.mm()\n"
                              "    x = rand_strided()\n    buf2 = torch.ops.a.b(buf9, out=)\n");
    assert_int_equal(torch_log_extern_calls(log), 2);
    torch_log_destroy(log);
}

static void one_name_in_two_modules_is_two_kernels(void **state)
{
    (void)state;
    TorchLog *log = read_text("DEBUG:a.b:Output code:\n# AOT ID: ['0_forward']\n"
                              "k_0 = async_compile.triton('k_0', '''\none\n''')\n"
                              "DEBUG:a.b:Output code:\n# AOT ID: ['0_backward']\n"
                              "k_0 = async_compile.triton('k_0', '''\ntwo\n''')\n");
    assert_int_equal(log->kernels.count, 2);
    assert_string_equal(log->kernels.items[0].code, "one\n");
    assert_string_equal(log->kernels.items[1].code, "two\n");
    torch_log_destroy(log);
}

// The pieces in which text arrives make no difference.
static void pieces_of_any_size_give_the_same(void **state)
{
    (void)state;
    TorchLog *whole = read_golden("layernorm.short.txt");
    char *expected = kernels_text(whole);
    for (size_t piece = 1; piece < 5000; piece = piece * 3 + 1) {
        FILE *file = fopen(golden("layernorm.short.txt"), "rb");
        assert_non_null(file);
        char buffer[5000];
        TorchLog *log = torch_log_create();
        torch_log_begin_file(log, "pieces", 0);
        for (size_t got; (got = fread(buffer, 1, piece, file)) > 0;)
            torch_log_feed(log, buffer, got);
        torch_log_end_file(log);
        torch_log_finish(log);
        fclose(file);
        char *text = kernels_text(log);
        assert_string_equal(text, expected);
        assert_int_equal(log->lines.read, whole->lines.read);
        free(text);
        torch_log_destroy(log);
    }
    free(expected);
    torch_log_destroy(whole);
}

// A line of a megabyte, and names and dtypes that nobody has seen.
static void long_and_strange_lines_pass(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20 };
    char *text = malloc(BYTES + 256);
    int head = sprintf(text, "INFO:a.b:TRACED GRAPH\n ===== Forward graph 0 =====\n"
                             " class X(torch.nn.Module):\n    def forward(self, a: \"q7[2]\"):\n"
                             "        z\xc3\xa9 = a\n        n: \"q7[2]\" = odd.thing(a, \"");
    memset(text + head, 'x', BYTES);
    strcpy(text + head + BYTES, "\")\n        return (n,)\n");
    TorchLog *log = read_text(text);
    assert_int_equal(log->graphs.items[0].operations, 1);
    assert_int_equal(strlen(node_named(&log->graphs.items[0], "n")->arguments), BYTES + 5);
    assert_int_equal(log->lines.unknown, 1);
    torch_log_destroy(log);
    free(text);
}

// Real logs with bytes changed, lines dropped and ends cut off: no crash, every line counted.
static void random_damage_never_stops_it(void **state)
{
    (void)state;
    static const char *const names[] = {"layernorm.short.txt", "layernorm.prefix.txt",
                                        "higher-order.prefix.txt", "dynamic.short.txt"};
    uint64_t seed;
    assert_int_equal(getrandom(&seed, sizeof(seed), 0), sizeof(seed));
    print_message("seed %llu\n", (unsigned long long)seed); // to set here when this fails
    for (int round = 0; round < 60; round++) {
        FILE *file = fopen(golden(names[round % 4]), "rb");
        assert_non_null(file);
        static char text[200000];
        size_t bytes = fread(text, 1, sizeof(text), file);
        fclose(file);
        uint32_t noise[64];
        for (size_t i = 0; i < COUNT_OF(noise); i++)
            noise[i] = (uint32_t)((seed = seed * UINT64_C(6364136223846793005) + 1) >> 32);
        for (int i = 0; i < 40; i++)
            text[noise[i] % bytes] = "'\"()[]{}\n=:;# \x1b\0"[noise[i] >> 28];
        bytes -= noise[41] % (bytes / 2);
        TorchLog *log = torch_log_create();
        torch_log_begin_file(log, "damaged", 0);
        torch_log_feed(log, text, bytes);
        torch_log_end_file(log);
        torch_log_finish(log);
        assert_int_equal(log->lines.read,
                         log->lines.understood + log->lines.noise + log->lines.unknown);
        json_destroy(torch_log_json(log));
        torch_log_destroy(log);
    }
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        int code;
    } rows[] = {{"/no/such/log.txt", EXIT_CODE_NO_INPUT},
                {"/", EXIT_CODE_NO_INPUT},
                {"/dev/null", EXIT_CODE_DATA}};
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        TorchLog *log = torch_log_create();
        Error error = {0};
        assert_false(torch_log_read(log, rows[i].path, 0, &error));
        assert_int_equal(error.exit_code, rows[i].code);
        torch_log_destroy(log);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_logs_give_what_was_counted),
        cmocka_unit_test(a_brief_log_reports_the_same),
        cmocka_unit_test(both_forms_of_a_program_give_the_same_kernels),
        cmocka_unit_test(nodes_carry_their_inputs_shapes_and_places),
        cmocka_unit_test(kernels_are_joined_with_their_nodes_and_bytes),
        cmocka_unit_test(every_form_is_read),
        cmocka_unit_test(ranks_come_from_the_line_or_the_file),
        cmocka_unit_test(roles_of_parameters_are_kept),
        cmocka_unit_test(both_forms_of_call_are_read),
        cmocka_unit_test(prints_do_not_end_a_function),
        cmocka_unit_test(empty_brackets_are_survived),
        cmocka_unit_test(one_name_in_two_modules_is_two_kernels),
        cmocka_unit_test(pieces_of_any_size_give_the_same),
        cmocka_unit_test(long_and_strange_lines_pass),
        cmocka_unit_test(random_damage_never_stops_it),
        cmocka_unit_test(bad_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
