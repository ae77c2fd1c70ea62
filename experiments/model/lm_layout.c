// From a mesh and a plan to who holds what.
#include "experiments/model/lm_layout.h"
#include "experiments/model/layer.h"
#include "parallel/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- axes ----

static MeshAxes axes_of(const Mesh *mesh, const bool *member)
{
    MeshAxes all = {0};
    for (int axis = 0; axis < mesh->axes; axis++)
        all.member[axis] = !member[axis];
    return mesh_others(mesh, &all);
}

static MeshAxes axis_named(const Mesh *mesh, const char *name)
{
    bool member[MESH_AXES_MAX] = {false};
    int axis = mesh_find_axis(mesh, name);
    if (axis >= 0)
        member[axis] = true;
    return axes_of(mesh, member);
}

// The members of a that are not in b.
static MeshAxes without(const Mesh *mesh, const MeshAxes *a, const MeshAxes *b)
{
    bool member[MESH_AXES_MAX] = {false};
    for (int axis = 0; axis < mesh->axes; axis++)
        member[axis] = a->member[axis] && !b->member[axis];
    return axes_of(mesh, member);
}

static bool overlaps(const MeshAxes *a, const MeshAxes *b)
{
    for (int axis = 0; axis < MESH_AXES_MAX; axis++)
        if (a->member[axis] && b->member[axis])
            return true;
    return false;
}

static bool select_axes(const LmLayoutRequest *request, LmLayout *l, Error *error)
{
    const Mesh *mesh = request->mesh;
    bool moe = lm_is_moe(request->config);
    const char *experts_on = request->experts_on;
    if (experts_on && !moe)
        return error_set(error, EXIT_CODE_USAGE, "add --experts N, or drop --experts_on",
                         "--experts_on %.60s in a model without experts", experts_on);
    if (!experts_on && moe && mesh_find_axis(mesh, "ep") >= 0)
        experts_on = "ep";
    if (!mesh_select(mesh, moe ? experts_on : NULL, &l->experts, error))
        return false;
    MeshAxes copies = axis_named(mesh, "replica");
    l->tp = axis_named(mesh, "tp");
    l->data = mesh_others(mesh, &l->tp);
    l->replica = request->replicate ? l->data : copies;
    l->shard = without(mesh, &l->data, &l->replica);
    l->experts_replica = without(mesh, &l->replica, &l->experts);
    l->experts_shard = without(mesh, &l->shard, &l->experts);
    l->experts_on_tp = overlaps(&l->experts, &l->tp);
    return true;
}

static void append_name(char *to, const char *name)
{
    size_t used = strlen(to);
    snprintf(to + used, MESH_NAME_BYTES - used, "%s%s", used ? "*" : "", name);
}

static void add_view_axis(const Mesh *mesh, Mesh *view, const MeshAxes *axes)
{
    int at = view->axes++;
    for (int axis = 0; axis < mesh->axes; axis++)
        if (axes->member[axis])
            append_name(view->name[at], mesh->name[axis]);
    view->ranks[at] = axes->ranks;
    view->coord[at] = axes->coord;
}

// The axes of a view, in its order: copies, FSDP, experts (if any), tp (where experts do not hold
// it).
static int view_axes(const LmLayout *l, int group, const MeshAxes *axes[MESH_AXES_MAX])
{
    if (group == LM_DENSE) {
        axes[0] = &l->replica;
        axes[1] = &l->shard;
        axes[2] = &l->tp;
        return 3;
    }
    axes[0] = &l->experts_replica;
    axes[1] = &l->experts_shard;
    axes[2] = &l->experts;
    axes[3] = &l->tp;
    return l->experts_on_tp ? 3 : 4;
}

static void make_views(LmLayout *l)
{
    for (int group = 0; group < FSDP_GROUPS; group++) {
        const MeshAxes *axes[MESH_AXES_MAX];
        int count = view_axes(l, group, axes);
        l->view[group].world.ranks = l->mesh->world.ranks;
        for (int i = 0; i < count; i++)
            add_view_axis(l->mesh, &l->view[group], axes[i]);
    }
}

void lm_view_coord(const LmLayout *l, int group, int rank, int *coord)
{
    const MeshAxes *axes[MESH_AXES_MAX];
    int count = view_axes(l, group, axes);
    for (int i = 0; i < count; i++)
        coord[i] = mesh_place(l->mesh, axes[i], rank);
}

// ---- styles ----

// Without and with sequence parallelism.
static const Style default_style[LM_ROLES][2] = {
    [LM_EMBEDDING] = {STYLE_VOCAB_EMBEDDING, STYLE_VOCAB_EMBEDDING},
    [LM_NORM] = {STYLE_REPLICATE, STYLE_SEQUENCE},
    [LM_GATE] = {STYLE_COLWISE, STYLE_COLWISE},
    [LM_UP] = {STYLE_COLWISE, STYLE_COLWISE},
    [LM_DOWN] = {STYLE_ROWWISE, STYLE_ROWWISE},
    [LM_ROUTER] = {STYLE_REPLICATE, STYLE_REPLICATE},
    [LM_EXPERTS_IN] = {STYLE_EXPERT, STYLE_EXPERT},
    [LM_EXPERTS_OUT] = {STYLE_EXPERT, STYLE_EXPERT},
    [LM_HEAD] = {STYLE_VOCAB_HEAD, STYLE_VOCAB_HEAD},
};

// A role takes its default styles and replicate, no other.
static bool fits(LmRole role, Style style)
{
    return style == STYLE_REPLICATE || style == default_style[role][0] ||
           style == default_style[role][1];
}

static bool report_misfit(const Plan *plan, const PlanLine *line, const LmParameter *p,
                          Error *error)
{
    const StyleRow *row = style_row(line->style);
    char shape[96], fix[160];
    tensor_describe(&p->whole, shape, sizeof shape);
    Style good = default_style[p->role][1];
    snprintf(fix, sizeof fix, "%s takes replicate%s%s", p->name,
             good == STYLE_REPLICATE ? "" : " or ",
             good == STYLE_REPLICATE ? "" : style_row(good)->name);
    if (row->dim >= p->whole.rank)
        return error_set(error, EXIT_CODE_USAGE, fix,
                         "%.200s:%d: %s divides dimension %d, and %s is %s", plan->file, line->line,
                         row->name, row->dim, p->name, shape);
    return error_set(error, EXIT_CODE_USAGE, fix, "%.200s:%d: %s cannot be applied to %s %s",
                     plan->file, line->line, row->name, p->name, shape);
}

static bool apply_plan(const LmLayoutRequest *request, LmLayout *l, Error *error)
{
    const LmParameters *list = request->parameters;
    const char **names = calloc((size_t)list->count, sizeof(*names));
    int *line_of = calloc((size_t)list->count, sizeof(*line_of));
    CHECK(names && line_of, EXIT_CODE_HARDWARE, "free some memory", "no memory for names");
    for (int i = 0; i < list->count; i++)
        names[i] = list->parameter[i].name;
    bool good = plan_apply(request->plan, names, list->count, line_of, error);
    for (int i = 0; good && i < list->count; i++) {
        const LmParameter *p = &list->parameter[i];
        l->style[i] = STYLE_REPLICATE;
        if (line_of[i] < 0)
            continue;
        const PlanLine *line = &request->plan->line[line_of[i]];
        l->style[i] = line->style;
        if (!fits(p->role, line->style))
            good = report_misfit(request->plan, line, p, error);
    }
    free(names);
    free(line_of);
    return good;
}

// Parameters that are one product or one residual stream must agree.
static bool check_agreement(const LmLayout *l, const char *what, int a, int b, Style style_a,
                            Style style_b, Error *error)
{
    const LmParameter *p = l->parameters->parameter;
    if ((l->style[a] == style_a) == (l->style[b] == style_b))
        return true;
    return error_set(error, EXIT_CODE_USAGE, what, "%s is %s and %s is %s", p[a].name,
                     style_row(l->style[a])->name, p[b].name, style_row(l->style[b])->name);
}

static bool check_styles(const LmLayout *l, Error *error)
{
    const LmConfig *c = l->config;
    int norm = lm_norm_parameter(c);
    for (int layer = 0; layer < c->layers; layer++) {
        int first = lm_block_parameter(layer, LM_BLOCK_FIRST);
        int in = lm_block_parameter(layer, LM_BLOCK_IN),
            out = lm_block_parameter(layer, LM_BLOCK_OUT);
        if (!check_agreement(l, "give the experts of all layers one style", out,
                             lm_block_parameter(0, LM_BLOCK_OUT), STYLE_EXPERT, STYLE_EXPERT,
                             error) ||
            !check_agreement(l, "give every norm the style sequence, or none",
                             lm_block_parameter(layer, LM_BLOCK_NORM), norm, STYLE_SEQUENCE,
                             STYLE_SEQUENCE, error))
            return false;
        if (lm_is_moe(c)) {
            if (!check_agreement(l, "give both tensors of the experts one style", in, out,
                                 STYLE_EXPERT, STYLE_EXPERT, error))
                return false;
            continue;
        }
        const char *fix = "gate and up colwise with down rowwise, or all three replicate";
        if (!check_agreement(l, fix, first, in, STYLE_COLWISE, STYLE_COLWISE, error) ||
            !check_agreement(l, fix, first, out, STYLE_COLWISE, STYLE_ROWWISE, error))
            return false;
    }
    return true;
}

static void choose_flows(LmLayout *l)
{
    const LmConfig *c = l->config;
    bool tp = l->tp.ranks > 1;
    l->sequence = tp && l->style[lm_norm_parameter(c)] == STYLE_SEQUENCE;
    l->split_embedding = tp && l->style[0] == STYLE_VOCAB_EMBEDDING;
    l->split_head = tp && l->style[lm_head_parameter(c)] == STYLE_VOCAB_HEAD;
    for (int layer = 0; layer < c->layers; layer++) {
        Style style = l->style[lm_block_parameter(layer, LM_BLOCK_OUT)];
        bool over_tp = style == STYLE_EXPERT && l->experts_on_tp;
        if (!tp || style == STYLE_REPLICATE || (over_tp && l->sequence))
            l->flow[layer] = LM_FLOW_LOCAL;
        else
            l->flow[layer] = over_tp ? LM_FLOW_SPLIT_TOKENS : LM_FLOW_SPLIT_INNER;
    }
}

// ---- placements ----

int lm_group(const LmLayout *l, int parameter)
{
    return l->style[parameter] == STYLE_EXPERT ? LM_EXPERTS : LM_DENSE;
}

// Placements without FSDP: what a rank's gathered copy is of the whole.
static void place_gathered(const LmLayout *l, int parameter, Placement *out)
{
    const StyleRow *row = style_row(l->style[parameter]);
    for (int axis = 0; axis < MESH_AXES_MAX; axis++)
        out[axis] = placement_replicate();
    if (lm_group(l, parameter) == LM_DENSE) {
        if (row->dim >= 0)
            out[2] = placement_shard(row->dim);
        return;
    }
    bool in = l->parameters->parameter[parameter].role == LM_EXPERTS_IN;
    out[2] = placement_shard(0);
    if (!l->experts_on_tp) // a share of the gate rows, then the same share of the up rows
        out[3] = in ? placement_strided(1, 2) : placement_shard(2);
}

DTensor lm_gathered(const LmLayout *l, int parameter)
{
    Placement placement[MESH_AXES_MAX];
    place_gathered(l, parameter, placement);
    return dtensor_make(&l->view[lm_group(l, parameter)],
                        &l->parameters->parameter[parameter].whole, placement);
}

// FSDP divides rows; those inside experts where there are fewer experts than ranks (as torchtitan).
static int fsdp_dim(const LmLayout *l, int parameter)
{
    if (lm_group(l, parameter) == LM_DENSE)
        return 0;
    return shard_size(l->config->moe.experts, l->experts.ranks) < l->experts_shard.ranks ? 1 : 0;
}

DTensor lm_shard(const LmLayout *l, int parameter)
{
    Placement placement[MESH_AXES_MAX];
    place_gathered(l, parameter, placement);
    const Mesh *view = &l->view[lm_group(l, parameter)];
    int dim = fsdp_dim(l, parameter), pieces = 1;
    for (int axis = 2; axis < view->axes; axis++)
        if (placement[axis].kind == PLACEMENT_SHARD && placement[axis].dim == dim)
            pieces *= view->ranks[axis];
    placement[1] = pieces > 1 ? placement_strided(dim, pieces) : placement_shard(dim);
    return dtensor_make(view, &l->parameters->parameter[parameter].whole, placement);
}

bool lm_is_owner(const LmLayout *l, int parameter, int rank)
{
    int coord[MESH_AXES_MAX];
    DTensor shard = lm_shard(l, parameter);
    lm_view_coord(l, lm_group(l, parameter), rank, coord);
    for (int axis = 0; axis < shard.mesh->axes; axis++)
        if (shard.placement[axis].kind == PLACEMENT_REPLICATE && coord[axis] != 0)
            return false;
    return true;
}

LmLayout lm_layout_seen_from(const LmLayout *l, int rank)
{
    LmLayout seen = *l;
    MeshAxes *const axes[] = {
        &seen.tp,      &seen.data,          &seen.shard,          &seen.replica,
        &seen.experts, &seen.experts_shard, &seen.experts_replica};
    for (size_t i = 0; i < COUNT_OF(axes); i++)
        axes[i]->coord = mesh_place(l->mesh, axes[i], rank);
    for (int group = 0; group < FSDP_GROUPS; group++)
        lm_view_coord(l, group, rank, seen.view[group].coord);
    return seen;
}

bool lm_is_partial(const LmLayout *l, int parameter)
{
    const LmParameter *p = &l->parameters->parameter[parameter];
    Style style = l->style[parameter];
    if (l->tp.ranks == 1)
        return false;
    if (p->role == LM_ROUTER)
        return l->sequence || l->flow[p->layer] != LM_FLOW_LOCAL;
    return l->sequence && (style == STYLE_REPLICATE || style == STYLE_SEQUENCE);
}

DType lm_tp_wire(const LmLayout *l, bool exact)
{
    return exact ? DTYPE_F32 : l->config->dtype;
}

const char *lm_describe(const LmLayout *l, int parameter, char *text, size_t bytes)
{
    DTensor shard = lm_shard(l, parameter);
    size_t used = 0;
    text[0] = '\0';
    for (int axis = 0; axis < shard.mesh->axes && used < bytes; axis++) {
        char word[PLACEMENT_TEXT_BYTES];
        if (shard.mesh->ranks[axis] == 1)
            continue;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s: %s", used ? ", " : "",
                                 shard.mesh->name[axis],
                                 placement_format(&shard.placement[axis], word, sizeof word));
    }
    if (used == 0)
        snprintf(text, bytes, "whole");
    return text;
}

FsdpParameter *lm_fsdp_parameters(const LmLayout *l)
{
    const LmParameters *list = l->parameters;
    FsdpParameter *out = calloc((size_t)list->count, sizeof(*out));
    CHECK(out != NULL, EXIT_CODE_HARDWARE, "free some memory", "no memory for parameters");
    for (int i = 0; i < list->count; i++) {
        const LmParameter *p = &list->parameter[i];
        DTensor part = lm_gathered(l, i);
        int dim = fsdp_dim(l, i);
        int64_t size[3] = {1, part.local.shape[dim], 1}; // blocks, rows, columns
        for (int d = 0; d < part.local.rank; d++)
            if (d != dim)
                size[d < dim ? 0 : 2] *= part.local.shape[d];
        // No block is no row of one block.
        bool none = size[0] == 0;
        out[i] = (FsdpParameter){.unit = p->unit,
                                 .group = lm_group(l, i),
                                 .outer = none ? 1 : size[0],
                                 .rows = none ? 0 : size[1],
                                 .columns = size[2],
                                 .room_rows = none ? 0 : size[1],
                                 .joined = p->role == LM_UP,
                                 .partial = lm_is_partial(l, i)};
        if (p->role == LM_ROUTER)
            out[i].room_rows = moe_router_rows(&l->config->moe);
    }
    return out;
}

// ---- whole layouts ----

static bool spread_tokens(const LmLayoutRequest *request, LmLayout *l, Error *error)
{
    size_t ranks = (size_t)l->data.ranks;
    l->tokens_of_data = calloc(ranks, sizeof(int64_t));
    l->first_token_of_data = calloc(ranks, sizeof(int64_t));
    CHECK(l->tokens_of_data && l->first_token_of_data, EXIT_CODE_HARDWARE, "free some memory",
          "no memory for %d ranks", l->data.ranks);
    if (!layer_read_tokens(request->tokens, l->data.ranks, l->tokens_of_data, error))
        return false;
    for (int d = 0; d < l->data.ranks; d++) {
        l->first_token_of_data[d] = l->tokens;
        l->tokens += l->tokens_of_data[d];
    }
    if (l->tokens == 0 || l->tokens > INT32_MAX)
        return error_set(error, EXIT_CODE_USAGE, "give --tokens numbers that add up to 1 .. 2^31",
                         "%lld tokens in all", (long long)l->tokens);
    return true;
}

bool lm_layout_create(const LmLayoutRequest *request, LmLayout *l, Error *error)
{
    const LmParameters *list = request->parameters;
    *l = (LmLayout){
        .mesh = request->mesh, .config = request->config, .parameters = request->parameters};
    if (!select_axes(request, l, error))
        return false;
    make_views(l);
    l->style = calloc((size_t)list->count, sizeof(Style));
    l->flow = calloc((size_t)request->config->layers, sizeof(LmFlow));
    CHECK(l->style && l->flow, EXIT_CODE_HARDWARE, "free some memory", "no memory for a layout");
    for (int i = 0; i < list->count; i++)
        l->style[i] = default_style[list->parameter[i].role][request->sequence_parallel];
    bool good = (!request->plan || apply_plan(request, l, error)) && check_styles(l, error);
    if (good)
        choose_flows(l);
    good = good && spread_tokens(request, l, error);
    if (!good)
        lm_layout_destroy(l);
    return good;
}

void lm_layout_destroy(LmLayout *l)
{
    free(l->style);
    free(l->flow);
    free(l->tokens_of_data);
    free(l->first_token_of_data);
    *l = (LmLayout){0};
}
