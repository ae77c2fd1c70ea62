// layer_file.h -- a file that holds one MoE layer is run by dp2ep, whichever command was asked to.
#pragma once

#include "harness/command.h"

// Collective(all ranks). Runs dp2ep with those options of `table` that both commands have; error 2
// when another option of `table` was set, since the file decides. Returns dp2ep's exit code.
int layer_file_run(Run *run, const Option *table, const void *params);
