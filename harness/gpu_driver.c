// gpu_driver.c -- the wall round libnvidia-ml.so.1: own prototypes, so that neither its header nor
// its stub is needed to build.
//
// Prototypes and constants: NVML API reference (NVIDIA). Every entry point may be absent in an
// older driver.
#include "harness/gpu_driver.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct NvmlDevice NvmlDevice; // opaque

enum { NVML_SUCCESS = 0, NVML_CLOCK_SM = 1, NVML_CLOCK_MEMORY = 2, NVML_TEMPERATURE_GPU = 0 };

typedef struct Nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    const char *(*error_string)(int code);
    int (*driver_version)(char *version, unsigned bytes);
    int (*device_by_pci)(const char *pci, NvmlDevice **device);
    int (*clock)(NvmlDevice *device, int type, unsigned *mhz);
    int (*power)(NvmlDevice *device, unsigned *milliwatts);
    int (*temperature)(NvmlDevice *device, int sensor, unsigned *celsius);
    int (*throttle_reasons)(NvmlDevice *device, unsigned long long *mask);
} Nvml;

// ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bytes are
// the same.
static void load(void *library, const char *name, void *function_pointer)
{
    void *address = dlsym(library, name);
    memcpy(function_pointer, &address, sizeof(address));
}

static void nvml_close(Nvml *nvml)
{
    if (nvml->shutdown)
        nvml->shutdown();
    dlclose(nvml->library);
}

static bool nvml_open(Nvml *nvml, char *why, size_t why_bytes)
{
    *nvml = (Nvml){.library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)};
    if (!nvml->library) {
        snprintf(why, why_bytes, "no NVML: libnvidia-ml.so.1 cannot be loaded (no NVIDIA driver)");
        return false;
    }
    load(nvml->library, "nvmlInit_v2", &nvml->init);
    load(nvml->library, "nvmlErrorString", &nvml->error_string);
    load(nvml->library, "nvmlSystemGetDriverVersion", &nvml->driver_version);
    load(nvml->library, "nvmlDeviceGetHandleByPciBusId_v2", &nvml->device_by_pci);
    load(nvml->library, "nvmlDeviceGetClockInfo", &nvml->clock);
    load(nvml->library, "nvmlDeviceGetPowerUsage", &nvml->power);
    load(nvml->library, "nvmlDeviceGetTemperature", &nvml->temperature);
    load(nvml->library, "nvmlDeviceGetCurrentClocksThrottleReasons", &nvml->throttle_reasons);
    if (!nvml->throttle_reasons) // renamed in newer drivers
        load(nvml->library, "nvmlDeviceGetCurrentClocksEventReasons", &nvml->throttle_reasons);
    int code = nvml->init ? nvml->init() : -1;
    if (code != NVML_SUCCESS) {
        snprintf(why, why_bytes, "NVML does not start: %s",
                 nvml->error_string ? nvml->error_string(code) : "too old");
        nvml_close(nvml);
        return false;
    }
    load(nvml->library, "nvmlShutdown", &nvml->shutdown);
    return true;
}

static DeviceState nothing_known(void)
{
    return (DeviceState){
        .sm_clock_mhz = NAN, .memory_clock_mhz = NAN, .power_w = NAN, .temperature_c = NAN};
}

static void read_state(const Nvml *nvml, NvmlDevice *device, DeviceState *state)
{
    unsigned value = 0;
    unsigned long long mask = 0;
    bool complete = true;
    if (nvml->clock && nvml->clock(device, NVML_CLOCK_SM, &value) == NVML_SUCCESS)
        state->sm_clock_mhz = value;
    if (nvml->clock && nvml->clock(device, NVML_CLOCK_MEMORY, &value) == NVML_SUCCESS)
        state->memory_clock_mhz = value;
    if (nvml->power && nvml->power(device, &value) == NVML_SUCCESS)
        state->power_w = value * 1e-3;
    if (nvml->temperature &&
        nvml->temperature(device, NVML_TEMPERATURE_GPU, &value) == NVML_SUCCESS)
        state->temperature_c = value;
    if (nvml->throttle_reasons && nvml->throttle_reasons(device, &mask) == NVML_SUCCESS)
        state->throttle_mask = mask;
    else
        complete = false;
    if (!complete || isnan(state->sm_clock_mhz) || isnan(state->memory_clock_mhz) ||
        isnan(state->power_w) || isnan(state->temperature_c))
        snprintf(state->reason, sizeof(state->reason), "this driver does not let us read %s",
                 complete ? "some of the values" : "the throttle reasons");
}

DeviceState gpu_driver_state(const char *pci)
{
    DeviceState state = nothing_known();
    Nvml nvml;
    if (!nvml_open(&nvml, state.reason, sizeof(state.reason)))
        return state;
    NvmlDevice *device = NULL;
    int code = nvml.device_by_pci ? nvml.device_by_pci(pci, &device) : -1;
    if (code == NVML_SUCCESS)
        read_state(&nvml, device, &state);
    else
        snprintf(state.reason, sizeof(state.reason),
                 "NVML does not know the device at %.20s: %.40s", pci,
                 nvml.error_string ? nvml.error_string(code) : "too old");
    nvml_close(&nvml);
    return state;
}

bool gpu_driver_version(char *version, size_t version_bytes, char *why, size_t why_bytes)
{
    Nvml nvml;
    if (!nvml_open(&nvml, why, why_bytes))
        return false;
    bool known = nvml.driver_version &&
                 nvml.driver_version(version, (unsigned)version_bytes) == NVML_SUCCESS;
    if (!known)
        snprintf(why, why_bytes, "NVML does not tell the driver's version");
    nvml_close(&nvml);
    return known;
}
