// The decision to stop is made from values that are the same on every rank.
#include "experiments/model/sampling.h"
#include "harness/clock.h"
#include "harness/progress.h"

#include <stdlib.h>

const char *sampling_run(const Sampling *s)
{
    double *largest = calloc((size_t)s->rule.samples_max, sizeof(double));
    CHECK(largest != NULL, EXIT_CODE_HARDWARE, "lower --samples", "no memory for %d samples",
          s->rule.samples_max);
    Progress progress = progress_begin(s->run, s->name, s->rule.samples_max);
    double start = clock_s();
    const char *reason = NULL;
    for (int count = 0; !reason; count++) {
        if (run_stop_requested(s->run)) {
            reason = "signal";
            break;
        }
        s->iterate(s->context);
        recorder_iteration(s->recorder, true);
        double mine = recorder_seconds(s->recorder, s->span)[count];
        largest[count] = run_maximum(s->run, mine);
        double elapsed = run_maximum(s->run, clock_s() - start);
        reason = statistics_stop(&s->rule, largest, count + 1, elapsed);
        progress_update(&progress, count + 1);
    }
    progress_end(&progress);
    free(largest);
    return reason;
}
