// intervals.h -- how long a stream was at something that happens many times in a step: pairs of
// events, added up afterwards. For what a Recorder's span (once per iteration) cannot say.
#pragma once

#include "harness/device.h"

typedef struct Intervals {
    int room, used;
    Event *begin, *end; // [room]
} Intervals;

Intervals intervals_create(int room, DeviceKind device); // Local
void intervals_destroy(Intervals *intervals);            // Local
// Enqueues(stream). Beyond the room nothing is recorded. NULL is legal.
void intervals_begin(Intervals *intervals, Stream stream);
void intervals_end(Intervals *intervals, Stream stream);
double intervals_take(Intervals *intervals); // Waits. Seconds since the last call
