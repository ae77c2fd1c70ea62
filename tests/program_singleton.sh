#!/usr/bin/env bash
# The singleton trap: a launcher started several copies, and each sees one rank. It is refused, with the way out.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# with VARIABLES... -- WORDS...: the program without mpirun, in an environment as the launcher would leave it.
with() {
    local variables=()
    while [ "$1" != -- ]; do variables+=("$1") && shift; done
    shift
    command_line="${variables[*]} meshwork $*"
    env "${variables[@]}" timeout --kill-after=5 "$run_limit_s" "$program" "$@" >out 2>err </dev/null
    status=$?
}

# srun without PMIx: four tasks, each a job of its own.
with SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_PROCID=2 SLURM_LOCALID=2 SLURM_NTASKS=4 SLURM_STEP_NUM_TASKS=4 -- \
    dp2ep --samples 0
expect_status 2
expect_text err 'meshwork: error: .*4'
expect_text err 'fix: .*(--mpi=pmix|mpirun)'

# The hydra of another MPI.
with PMI_RANK=0 PMI_SIZE=2 -- dp2ep --samples 0
expect_status 2
expect_text err 'meshwork: error: .*2'
expect_text err 'fix: .*mpirun'

# torchrun-like variables of a parent that is no launcher of ours say nothing about MPI by themselves: no crash.
with RANK=0 WORLD_SIZE=1 -- dp2ep --samples 0
expect_status 0

# The batch shell of an allocation of four tasks is one process and means it.
with SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0 -- dp2ep --samples 0
expect_status 0

# Nonsense from outside is no number.
with SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=many -- dp2ep --samples 0
checks=$((checks + 1))
case $status in 0 | 2) ;; *) fail "$command_line: exit code $status" ;; esac

finish
