// run_device.h -- which device each rank of the job works on.
//
// One GPU per rank: a rank that sees one GPU takes it, a rank that sees several takes the one of
// its place on the host (CUDA_VISIBLE_DEVICES is left alone, so that ranks can reach each other's
// memory).
#pragma once

#include "harness/device.h"
#include "harness/run.h"

// As the option --device spells it: cpu|cuda|auto.
typedef enum DeviceChoice {
    DEVICE_CHOICE_CPU,
    DEVICE_CHOICE_CUDA,
    DEVICE_CHOICE_AUTO
} DeviceChoice;

// Collective(all ranks). The same kind on all ranks; makes this rank's device current. auto takes
// CUDA when every rank of every host has a GPU of its own. Stops with 69 when CUDA is asked for and
// not there. That two ranks share one GPU is found when they first communicate (comm_create_world).
DeviceKind run_choose_device(const Run *run, DeviceChoice choice, int *device_index);
