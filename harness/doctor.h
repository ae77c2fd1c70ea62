// doctor.h -- what this machine and this build can do, what is missing, and what that costs: one
// table of probes.
#pragma once

#include "harness/json.h"
#include "harness/run.h"

typedef enum DoctorVerdict {
    DOCTOR_GOOD,
    DOCTOR_ABSENT,
    DOCTOR_WARNING,
    DOCTOR_BROKEN
} DoctorVerdict;

typedef struct DoctorLine {
    DoctorVerdict verdict;
    char found[256]; // version, path, count
    char cost[256];  // what its absence costs, and how to get it; "" when good
} DoctorLine;

// One thing to look at. Rows of other folders are passed in by the command, so that the harness
// includes nobody.
typedef struct DoctorProbe {
    const char *name; // "mpi", "cuda", "nccl", "papi", ...
    void (*look)(DoctorLine *line);
} DoctorProbe;

extern const DoctorProbe doctor_harness_probes[]; // NULL-named end
// Local. Looks at all rows, prints the table (or JSON), returns 0, or 69 when something needed is
// broken.
int doctor_report(const DoctorProbe *const *tables, int table_count, bool as_json);

// Local. "name version git-description, linked MPI, NCCL, CUDA, HDF5 ..." into text; what --version
// prints.
void doctor_version(char *text, size_t bytes);
