// moe_options.c -- a layer's options become its MoeConfig.
#include "experiments/model/moe_options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool read_routing(const char *text, MoeConfig *config, Error *error)
{
    if (strcmp(text, "even") == 0 || strcmp(text, "model") == 0) {
        config->routing = text[0] == 'e' ? ROUTING_EVEN : ROUTING_MODEL;
        return true;
    }
    char *end = NULL;
    double skew = strncmp(text, "skew:", 5) == 0 ? strtod(text + 5, &end) : 0;
    if (!end || end == text + 5 || *end != '\0' || !(skew > 0) || !isfinite(skew))
        return error_set(error, EXIT_CODE_USAGE, "even, model, or skew:7 (7 times the mean)",
                         "--routing \"%.60s\" is none of even, model, skew:X with X > 0", text);
    config->routing = ROUTING_SKEW;
    config->skew = skew;
    return true;
}

bool moe_options_read(const MoeOptions *o, MoeConfig *config, Error *error)
{
    *config = (MoeConfig){.hidden = o->dim,
                          .inner = o->hidden,
                          .experts = (int)o->experts,
                          .top_k = (int)o->top_k,
                          .score = o->score == 0 ? ROUTER_SIGMOID : ROUTER_SOFTMAX,
                          .score_before_experts = o->score_before_experts,
                          .normalise_top_k = o->normalise_top_k,
                          .route_scale = o->route_scale,
                          .expert_bias = o->expert_bias,
                          .shared_inner = o->shared_hidden,
                          .shared_gate = o->shared_gate,
                          .dtype = o->dtype == 0 ? DTYPE_F32 : DTYPE_BF16};
    if (o->top_k > o->experts)
        return error_set(error, EXIT_CODE_USAGE, "lower --top_k or raise --experts",
                         "--top_k %lld > --experts %lld", (long long)o->top_k,
                         (long long)o->experts);
    if (o->shared_gate && o->shared_hidden == 0)
        return error_set(error, EXIT_CODE_USAGE, "add --shared_hidden N, or drop --shared_gate",
                         "--shared_gate without a shared expert");
    return read_routing(o->routing, config, error);
}

bool moe_options_untouched(const Option *table, const void *params, Error *error)
{
    // What a layer file decides; --tokens too: the file says how many there are.
    static const char decided[] = " experts top_k dim hidden tokens score dtype route_scale "
                                  "expert_bias shared_hidden shared_gate score_before_experts "
                                  "normalise_top_k ";
    for (const Option *option = table; option->name; option++) {
        char text[256], word[64];
        snprintf(word, sizeof word, " %s ", option->name);
        option_format(option, params, text, sizeof text);
        if (strstr(decided, word) && strcmp(text, option->fallback) != 0)
            return error_set(error, EXIT_CODE_USAGE, "drop the option, or drop --load",
                             "--%s %s with --load: the file decides it", option->name, text);
    }
    return true;
}
