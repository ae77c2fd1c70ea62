// provenance.h -- what a run was: where, when, by which program, with which settings. The header of
// its result.
#pragma once

#include "results/result.h"

// Collective(all ranks). The header (SCHEMA.md lists its members) on rank 0, NULL elsewhere; takes
// over start->extra. Owner: the caller.
Json *provenance_create(const ResultStart *start);

// Local. Whether a variable of the environment is stored, and what of it: its value, a fixed word
// in place of a secret, or NULL.
const char *provenance_environment(const char *name, const char *value);
