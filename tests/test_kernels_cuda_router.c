// The CUDA rows of the router against its CPU rows on fresh random logits: the choice of experts
// exactly (both compute the same scores from the same logits), weights and gradients within a few
// roundings. All scores, routing modes and switches, ties, saturated and NaN logits, 1 to 512
// experts.
// labels: gpu
#include "tests/twin.h"

#include "kernels/router.h"

#define ON(cuda, twin) ((cuda) ? (twin).device : (twin).host)

typedef enum Logits {
    LOGITS_NORMAL,
    LOGITS_TIED,
    LOGITS_SATURATED,
    LOGITS_NAN,
    LOGITS_KINDS
} Logits;
static const char *const logits_names[] = {"normal", "tied", "saturated", "nan"};

typedef struct RouterCase {
    int64_t tokens;
    int experts, top_k;
    RouterScore score;
    RoutingMode routing;
    bool normalise, biased, gated;
    Logits logits;
    DType dtype; // of dlogits
} RouterCase;

static float logit(Twins *twins, Logits kind)
{
    switch (kind) {
    case LOGITS_TIED:
        return (float)twins_below(twins, 3) - 1;
    case LOGITS_SATURATED:
        return 40 * twins_normal(twins);
    case LOGITS_NAN:
        return twins_below(twins, 20) ? twins_normal(twins) : NAN;
    default:
        return twins_normal(twins);
    }
}

static void describe(Twins *twins, const RouterCase *c)
{
    static const char *const modes[] = {"model", "even", "skew"};
    snprintf(twins->text, sizeof(twins->text),
             "router %s tokens=%lld experts=%d top_k=%d routing %s%s%s%s, %s logits, d in %s",
             c->score == ROUTER_SIGMOID ? "sigmoid" : "softmax", (long long)c->tokens, c->experts,
             c->top_k, modes[c->routing], c->normalise ? " normalised" : "",
             c->biased ? " biased" : "", c->gated ? " gated" : "", logits_names[c->logits],
             dtype_row(c->dtype)->name);
}

static RouterForward forward_of(const RouterCase *c, uint64_t seed)
{
    return (RouterForward){.tokens = c->tokens,
                           .experts = c->experts,
                           .top_k = c->top_k,
                           .score = c->score,
                           .normalise = c->normalise,
                           .route_scale = 2.5f,
                           .routing = c->routing,
                           .skew = 2.5,
                           .seed = seed,
                           .first_token = 12345};
}

static RouterBackward backward_of(const RouterCase *c)
{
    return (RouterBackward){.tokens = c->tokens,
                            .experts = c->experts,
                            .top_k = c->top_k,
                            .score = c->score,
                            .normalise = c->normalise,
                            .route_scale = 2.5f,
                            .dtype = c->dtype};
}

static void router_case(Twins *twins, RouterCase c)
{
    describe(twins, &c);
    const TwinsMark mark = twins_mark(twins);
    const int64_t stride = (c.experts + 1 + 7) / 8 * 8, slots = c.tokens * c.top_k;
    Twin logits = twin_create(twins, c.tokens * stride, sizeof(float));
    for (int64_t i = 0; i < c.tokens * stride; i++)
        ((float *)logits.host)[i] = logit(twins, c.logits);
    twin_upload(twins, &logits);
    Twin bias = twin_normals(twins, c.experts, DTYPE_F32, 0.3f);
    Twin choice = twin_create(twins, slots, sizeof(int32_t));
    Twin expert = twin_create(twins, slots, sizeof(int32_t));
    Twin weight = twin_create(twins, slots, sizeof(float));
    Twin dweight = twin_normals(twins, slots, DTYPE_F32, 1);
    Twin dgate = twin_normals(twins, c.tokens, DTYPE_F32, 1);
    Twin dlogits = twin_create(twins, c.tokens * stride, dtype_bytes(c.dtype, 1));
    for (int cuda = 0; cuda < 2; cuda++) {
        const Stream stream = cuda ? twins->cuda : twins->cpu;
        RouterForward forward = forward_of(&c, twins->seed);
        forward.logits = ON(cuda, logits);
        forward.logits_stride = stride;
        forward.expert_bias = c.biased ? ON(cuda, bias) : NULL;
        forward.expert_of_choice = ON(cuda, choice);
        forward.expert_of_slot = ON(cuda, expert);
        forward.weight_of_slot = ON(cuda, weight);
        router_forward(&forward, stream);
        RouterBackward backward = backward_of(&c);
        backward.logits = ON(cuda, logits);
        backward.logits_stride = stride;
        backward.expert_of_slot = ON(cuda, expert);
        backward.dweight_of_slot = ON(cuda, dweight);
        backward.shared_dgate = c.gated ? ON(cuda, dgate) : NULL;
        backward.dlogits = ON(cuda, dlogits);
        router_backward(&backward, stream);
    }
    twin_expect_same(twins, &choice, DTYPE_I32, "expert_of_choice");
    twin_expect_same(twins, &expert, DTYPE_I32, "expert_of_slot");
    twin_expect_near(twins, &weight, DTYPE_F32, (Bound){.share = 0, .rare = 1}, "weight_of_slot");
    twin_expect_near(twins, &dlogits, c.dtype, (Bound){.share = 4e-6, .rare = 300}, "dlogits");
    twins_release(twins, mark);
}

static void test_all_switches(void **state)
{
    (void)state;
    Twins twins = twins_create();
    static const struct {
        int experts, top_k;
    } sizes[] = {{1, 1}, {4, 1}, {4, 4}, {60, 4}, {64, 6}, {65, 3}, {128, 8}, {256, 8}, {512, 10}};
    int round = 0;
    for (size_t s = 0; s < COUNT_OF(sizes); s++)
        for (int switches = 0; switches < 16; switches++)
            for (int mode = 0; mode < 3; mode++, round++)
                router_case(&twins, (RouterCase){.tokens = 67,
                                                 .experts = sizes[s].experts,
                                                 .top_k = sizes[s].top_k,
                                                 .score = (RouterScore)(switches & 1),
                                                 .normalise = switches & 2,
                                                 .biased = switches & 4,
                                                 .gated = switches & 8,
                                                 .routing = (RoutingMode)mode,
                                                 .dtype = round % 2 ? DTYPE_BF16 : DTYPE_F32,
                                                 .logits = LOGITS_NORMAL});
    twins_destroy(&twins);
}

static void test_odd_logits(void **state)
{
    (void)state;
    Twins twins = twins_create();
    for (int kind = LOGITS_TIED; kind < LOGITS_KINDS; kind++)
        for (int switches = 0; switches < 8; switches++)
            router_case(&twins, (RouterCase){.tokens = 301,
                                             .experts = 60,
                                             .top_k = 4,
                                             .score = (RouterScore)(switches & 1),
                                             .normalise = switches & 2,
                                             .biased = switches & 4,
                                             .dtype = DTYPE_F32,
                                             .logits = (Logits)kind});
    twins_destroy(&twins);
}

static void test_few_and_many_tokens(void **state)
{
    (void)state;
    Twins twins = twins_create();
    static const int64_t tokens[] = {0, 1, 5, 16384};
    for (size_t i = 0; i < COUNT_OF(tokens); i++)
        for (int score = 0; score < 2; score++)
            router_case(&twins, (RouterCase){.tokens = tokens[i],
                                             .experts = 60,
                                             .top_k = 4,
                                             .score = (RouterScore)score,
                                             .dtype = DTYPE_BF16,
                                             .gated = true});
    twins_destroy(&twins);
}

int main(void)
{
    if (!select_gpu())
        return EXIT_CODE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_switches),
        cmocka_unit_test(test_odd_logits),
        cmocka_unit_test(test_few_and_many_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
