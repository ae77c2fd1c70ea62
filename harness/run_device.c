// run_device.c -- which device each rank works on; the rule is in the header.
#include "harness/run_device.h"

DeviceKind run_choose_device(const Run *run, DeviceChoice choice, int *device_index)
{
    char why[256] = "";
    int gpus = device_count(DEVICE_CUDA, why, sizeof why);
    bool one_each = gpus >= run->local_ranks;
    bool auto_cuda = run_maximum(run, gpus > 0 && one_each ? 0 : 1) == 0;
    *device_index = 0;
    if (choice == DEVICE_CHOICE_CPU || (choice == DEVICE_CHOICE_AUTO && !auto_cuda))
        return DEVICE_CPU;
    bool all_have = run_maximum(run, gpus > 0 ? 0 : 1) == 0;
    CHECK_ALL(all_have, EXIT_CODE_HARDWARE, "use --device cpu, or start on a machine with GPUs",
              "--device cuda: %s", why[0] ? why : "another rank sees no GPU");
    if (gpus > 1)
        *device_index = run->local_rank % gpus;
    device_select(DEVICE_CUDA, *device_index);
    return DEVICE_CUDA;
}
