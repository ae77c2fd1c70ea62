// Pairs of events.
#include "parallel/intervals.h"

#include <stdlib.h>

#include "harness/check.h"

Intervals intervals_create(int room, DeviceKind device)
{
    Intervals i = {.room = room};
    i.begin = calloc((size_t)room, sizeof(Event));
    i.end = calloc((size_t)room, sizeof(Event));
    CHECK_RULE(i.begin && i.end);
    for (int k = 0; k < room; k++) {
        i.begin[k] = event_create(device);
        i.end[k] = event_create(device);
    }
    return i;
}

void intervals_destroy(Intervals *i)
{
    for (int k = 0; k < i->room; k++) {
        event_destroy(&i->begin[k]);
        event_destroy(&i->end[k]);
    }
    free(i->begin);
    free(i->end);
    *i = (Intervals){0};
}

void intervals_begin(Intervals *i, Stream stream)
{
    if (i && i->used < i->room)
        event_record(&i->begin[i->used], stream);
}

void intervals_end(Intervals *i, Stream stream)
{
    if (i && i->used < i->room)
        event_record(&i->end[i->used++], stream);
}

double intervals_take(Intervals *i)
{
    double seconds = 0;
    for (int k = 0; k < i->used; k++)
        seconds += event_seconds(&i->begin[k], &i->end[k]);
    i->used = 0;
    return seconds;
}
