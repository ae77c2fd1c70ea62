// gpu_driver.h -- clocks, power, temperature and throttling of a GPU from the driver's management
// library.
//
// The library (libnvidia-ml.so.1) comes with the driver and is loaded when asked for: where it is
// missing the answer is a reason, never an error. Nothing is kept between calls.
#pragma once

#include "harness/device.h"

DECLARATIONS_BEGIN

// Local. Values that are not to be had are NaN, with the reason in state.reason. pci:
// "0000:1B:00.0".
DeviceState gpu_driver_state(const char *pci);
// Local. The driver's version ("580.65.06"), or false and why not.
bool gpu_driver_version(char *version, size_t version_bytes, char *why, size_t why_bytes);

DECLARATIONS_END
