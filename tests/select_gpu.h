// select_gpu.h -- for the main of a test that needs a GPU.
#pragma once

#include "harness/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

// Local. Takes the first GPU; false, after saying so, where there is no GPU to test on.
static inline bool select_gpu(void)
{
    char why[DEVICE_TEXT_BYTES];
    if (device_count(DEVICE_CUDA, why, sizeof(why)) == 0) {
        print_message("skipped: no CUDA device: %s\n", why);
        return false;
    }
    device_select(DEVICE_CUDA, 0);
    return true;
}
