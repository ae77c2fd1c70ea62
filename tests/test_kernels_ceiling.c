// The measured ceilings of each device that is here: plausible numbers, quickly, and no memory
// kept.
#include "harness/clock.h"
#include "kernels/ceiling.h"
#include "tests/select_gpu.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

// A rate between that of one slow core and that of a rack.
static void expect_rate(const char *device, const char *name, double rate, double least)
{
    if (!(isfinite(rate) && rate >= least && rate <= 1e17))
        fail_msg("%s: %s is %g, expected %g or more", device, name, rate, least);
}

static void measure(DeviceKind kind, int threads)
{
    Arena *scratch = arena_create(MEMORY_DEVICE, kind);
    char *first = ARENA_PUSH(scratch, char, 1, MEMORY_SCRATCH);
    char *second = ARENA_PUSH(scratch, char, 1, MEMORY_SCRATCH);
    const double began = clock_s();
    const DeviceCeilings ceilings = ceiling_measure(kind, threads, scratch);
    const double taken = clock_s() - began;
    const char *device = device_kind_name(kind);
    expect_rate(device, "copy_bytes_per_s", ceilings.copy_bytes_per_s, 1e7);
    expect_rate(device, "f32_flops_per_s", ceilings.f32_flops_per_s, 1e6);
    expect_rate(device, "bf16_flops_per_s", ceilings.bf16_flops_per_s, 1e6);
    if (ceilings.link_bytes_per_s != 0)
        fail_msg("link_bytes_per_s is %g, expected 0: unknown", ceilings.link_bytes_per_s);
    if (taken > 30)
        fail_msg("%s: measuring took %g s, expected under 30 even on a busy machine", device,
                 taken);
    char *third = ARENA_PUSH(scratch, char, 1, MEMORY_SCRATCH);
    if (third - second != second - first)
        fail_msg("%s: the next piece lies %td bytes on, expected %td: something was kept", device,
                 third - second, second - first);
    print_message(
        "%s, %d threads: copy %.3g GB/s, f32 %.3g GFLOP/s, bf16 %.3g GFLOP/s, in %.2f s\n", device,
        threads, ceilings.copy_bytes_per_s * 1e-9, ceilings.f32_flops_per_s * 1e-9,
        ceilings.bf16_flops_per_s * 1e-9, taken);
    arena_destroy(scratch);
}

static void test_cpu(void **state)
{
    (void)state;
    measure(DEVICE_CPU, 1);
    measure(DEVICE_CPU, 2);
}

static void test_cuda(void **state)
{
    (void)state;
    if (!select_gpu())
        skip();
    measure(DEVICE_CUDA, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_cuda),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
