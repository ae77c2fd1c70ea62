// kernel.c -- what happens when a kernel has no row for a device.

#include "kernels/kernel.h"

void kernel_missing(const char *name, DeviceKind device)
{
    check_failed(__FILE__, __LINE__, EXIT_CODE_HARDWARE,
                 "choose another --device, or build with CUDA (see `meshwork doctor`)",
                 "kernel %s has no %s row in this build", name, device_kind_name(device));
}
