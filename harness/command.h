// command.h -- the table of commands. Each file experiments/<name>.c defines `const Command
// command_<name>`; CMake collects them by file name into command_table[]
// (build/generated/command_table.c). Adding one = adding the file.
#pragma once

#include "harness/option.h"
#include "harness/run.h"

typedef struct Command {
    const char *name;      // file stem = command = HDF5 group = Slurm job name
    const char *summary;   // one line for `meshwork --help`
    const char *usage;     // words after the command, such as "show FILE.h5"
    const char *notes;     // paragraph(s) under the option table, examples; may be NULL
    const Option *options; // ends with a NULL name
    size_t params_bytes;
    int positionals_max;
    bool spmd; // true: started on every rank (MPI); false: one process, MPI is never started
    // Every rank calls it when spmd. Returns the exit code (the same on all ranks).
    int (*run)(Run *run, const void *params, const OptionPositionals *positionals);
} Command;

extern const Command *const command_table[]; // NULL-terminated, sorted by name

// Local. The whole program: finds the command, parses its options, starts the run, calls it, stops.
// Returns exit code.
int command_main(int argc, char **argv);
