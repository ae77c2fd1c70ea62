// The explanation as tables and as JSON.
#include "experiments/model/lm_explain.h"
#include "harness/json.h"
#include "results/table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A parameter as a row: blocks that are alike are one row.
typedef struct Row {
    int parameter, alike;
} Row;

static bool is_alike(const LmLayout *l, int a, int b)
{
    return l->style[a] == l->style[b];
}

static int collect_rows(const LmLayout *l, Row *rows)
{
    const LmConfig *c = l->config;
    int count = 0;
    rows[count++] = (Row){0, 1};
    for (int i = 0; i < LM_BLOCK_PARAMETERS; i++)
        for (int layer = 0; layer < c->layers; layer++) {
            int parameter = lm_block_parameter(layer, (LmBlockParameter)i);
            if (layer > 0 && is_alike(l, parameter, rows[count - 1].parameter))
                rows[count - 1].alike++;
            else
                rows[count++] = (Row){parameter, 1};
        }
    rows[count++] = (Row){lm_norm_parameter(c), 1};
    rows[count++] = (Row){lm_head_parameter(c), 1};
    return count;
}

static void shape_text(const int64_t *shape, int rank, char *text, size_t bytes)
{
    size_t used = 0;
    for (int d = 0; d < rank && used < bytes; d++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%lld", d ? "x" : "",
                                 (long long)shape[d]);
}

static void show_parameters(const LmLayout *l)
{
    static const char *const columns[] = {"parameter", ">alike", "shape",  "style", "placement",
                                          "gradient",  ">shard", ">bytes", NULL};
    Row *rows = calloc((size_t)l->parameters->count, sizeof(Row));
    CHECK(rows != NULL, EXIT_CODE_HARDWARE, "lower --layers", "no memory for a table");
    int count = collect_rows(l, rows);
    Table *table = table_create(columns);
    for (int i = 0; i < count; i++) {
        int p = rows[i].parameter;
        char text[160];
        DTensor shard = lm_shard(l, p);
        table_cell(table, "%s", l->parameters->parameter[p].name);
        table_cell(table, "%d", rows[i].alike);
        shape_text(shard.shape, shard.local.rank, text, sizeof text);
        table_cell(table, "%s", text);
        table_cell(table, "%s", style_row(l->style[p])->name);
        table_cell(table, "%s", lm_describe(l, p, text, sizeof text));
        table_cell(table, "%s", lm_is_partial(l, p) ? "P over data and tp" : "P over data");
        shape_text(shard.local.shape, shard.local.rank, text, sizeof text);
        table_cell(table, "%s", text);
        table_cell(table, "%s", table_bytes((double)tensor_bytes(&shard.local), text, sizeof text));
    }
    table_print(table, stdout);
    table_destroy(table);
    free(rows);
}

static void show_collectives(const LmCost *cost)
{
    static const char *const columns[] = {"collective", "over", ">calls", ">bytes sent", "", NULL};
    char text[64];
    Table *table = table_create(columns);
    for (int i = 0; i < cost->count; i++) {
        const LmCollective *row = &cost->row[i];
        table_cell(table, "%s", row->name);
        table_cell(table, "%s", lm_traffic_name(row->kind));
        table_cell(table, "%lld", (long long)row->calls);
        table_cell(table, "%llu", (unsigned long long)row->bytes);
        table_cell(table, "%s", table_bytes((double)row->bytes, text, sizeof text));
    }
    table_print(table, stdout);
    table_destroy(table);
    if (cost->dispatch_most > 0)
        printf("dispatch and combine: %.0f bytes at least, %.0f with even routing, %.0f at most\n",
               cost->dispatch_least, cost->dispatch_even, cost->dispatch_most);
}

static void show_memory(const LmCost *cost)
{
    char text[64];
    printf("\nmemory of the rank\n");
    for (int category = 0; category < MEMORY_CATEGORIES; category++)
        printf("  %-14s %16llu  %s\n", memory_category_name((MemoryCategory)category),
               (unsigned long long)cost->held[category],
               table_bytes((double)cost->held[category], text, sizeof text));
    if (cost->experts_held > 0)
        printf("  %-14s %16llu  %s, about: every token of a group on one rank\n", "expert rows",
               (unsigned long long)cost->experts_held,
               table_bytes((double)cost->experts_held, text, sizeof text));
    const FsdpMemory *m = &cost->memory;
    printf("parameters are %llu bytes of shards and %llu gathered; the largest unit is %llu\n",
           (unsigned long long)m->shard_bytes, (unsigned long long)m->gathered_bytes,
           (unsigned long long)m->largest_bytes);
    const LmMemory *model = &cost->model;
    printf(
        "gradients' shards take the place of activations: %llu bytes from byte %llu of a room of "
        "%llu\n",
        (unsigned long long)m->shard_bytes, (unsigned long long)model->gradients_first_bytes,
        (unsigned long long)model->room_bytes);
}

static Json *json_shape(const int64_t *shape, int rank)
{
    Json *array = json_array();
    for (int d = 0; d < rank; d++)
        json_append(array, json_integer(shape[d]));
    return array;
}

static Json *parameters_json(const LmLayout *l)
{
    Json *array = json_array();
    for (int p = 0; p < l->parameters->count; p++) {
        char text[160];
        DTensor shard = lm_shard(l, p);
        Json *one = json_object();
        json_set(one, "name", json_text(l->parameters->parameter[p].name));
        json_set(one, "shape", json_shape(shard.shape, shard.local.rank));
        json_set(one, "style", json_text(style_row(l->style[p])->name));
        json_set(one, "placement", json_text(lm_describe(l, p, text, sizeof text)));
        json_set(one, "partial_over_tp", json_boolean(lm_is_partial(l, p)));
        json_set(one, "shard", json_shape(shard.local.shape, shard.local.rank));
        json_append(array, one);
    }
    return array;
}

static void show_json(const LmLayout *l, const LmCost *cost)
{
    Json *root = json_object(), *collectives = json_array(), *memory = json_object();
    for (int i = 0; i < cost->count; i++) {
        Json *one = json_object();
        json_set(one, "collective", json_text(cost->row[i].name));
        json_set(one, "over", json_text(lm_traffic_name(cost->row[i].kind)));
        json_set(one, "calls", json_integer(cost->row[i].calls));
        json_set(one, "bytes", json_integer((int64_t)cost->row[i].bytes));
        json_append(collectives, one);
    }
    for (int category = 0; category < MEMORY_CATEGORIES; category++)
        json_set(memory, memory_category_name((MemoryCategory)category),
                 json_integer((int64_t)cost->held[category]));
    json_set(memory, "expert_rows_about", json_integer((int64_t)cost->experts_held));
    json_set(memory, "shards", json_integer((int64_t)cost->memory.shard_bytes));
    json_set(memory, "gathered", json_integer((int64_t)cost->memory.gathered_bytes));
    json_set(memory, "largest_unit", json_integer((int64_t)cost->memory.largest_bytes));
    json_set(memory, "room", json_integer((int64_t)cost->model.room_bytes));
    json_set(memory, "gradients_first", json_integer((int64_t)cost->model.gradients_first_bytes));
    json_set(root, "command", json_text("parallelisms --explain"));
    json_set(root, "parameters", parameters_json(l));
    json_set(root, "collectives", collectives);
    json_set(root, "dispatch_least_bytes", json_real(cost->dispatch_least));
    json_set(root, "dispatch_even_bytes", json_real(cost->dispatch_even));
    json_set(root, "dispatch_most_bytes", json_real(cost->dispatch_most));
    json_set(root, "memory_bytes", memory);
    char *text = json_print(root, true);
    printf("%s\n", text);
    free(text);
    json_destroy(root);
}

void lm_explain(const LmLayout *layout, const LmTraining *training, bool exact, bool as_json)
{
    LmCost cost = lm_cost(layout, training, exact);
    if (as_json) {
        show_json(layout, &cost);
        return;
    }
    printf("mesh of %d ranks, as rank 0 sees it; one step of %d micro-batch%s\n\n",
           layout->mesh->world.ranks, training->accumulate, training->accumulate == 1 ? "" : "es");
    show_parameters(layout);
    printf("\n");
    show_collectives(&cost);
    show_memory(&cost);
}
