#!/usr/bin/env bash
# The sbatch templates: bash accepts them, they ask Slurm for what a resumable MPI job needs, and, run with stand-ins for
# srun, scancel and scontrol, they start the program once, pass the signal on, requeue on 75 and hand on the exit code.
# $1: the source folder.
# builds: release
set -uo pipefail
cd "${1:-.}" || exit 1
source_folder=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
fail() { echo "FAILED: $*" && bad=1; }

for script in slurm/*.sbatch; do
    bash -n "$script" || fail "$script: no valid bash"
    for option in job-name nodes time output signal requeue open-mode=append export=NIL; do
        grep -q "^#SBATCH --$option" "$script" || fail "$script: no #SBATCH --$option"
    done
    # A line that Slurm would pass over: after the first command it reads no more options.
    first=$(grep -nvE '^#|^$' "$script" | head -n 1 | cut -d: -f1)
    last=$(grep -n '^#SBATCH' "$script" | tail -n 1 | cut -d: -f1)
    [ "$last" -lt "$first" ] || fail "$script: #SBATCH in line $last stands after the first command"
    grep -q 'kill-on-bad-exit=1' "$script" || fail "$script: one failing rank would leave the others waiting"
    # shellcheck disable=SC2016 # the name, not its value
    grep -q 'cpus-per-task="$SLURM_CPUS_PER_TASK"' "$script" || fail "$script: srun does not inherit --cpus-per-task"
done

# Stand-ins. srun notes its words, leaves early with 75 when it gets USR1, else with $FAKE_STATUS.
mkdir "$work/bin" "$work/job"
cat >"$work/bin/srun" <<'FAKE'
#!/bin/bash
echo "$*" >>srun.log
[ "$SLURM_EXPORT_ENV" = ALL ] || exit 98
trap 'exit 75' USR1
echo $$ >srun.pid
for _ in $(seq "${FAKE_TENTHS:-0}"); do sleep 0.1; done
exit "${FAKE_STATUS:-0}"
FAKE
cat >"$work/bin/scontrol" <<'FAKE'
#!/bin/bash
echo "$*" >>scontrol.log
FAKE
cat >"$work/bin/scancel" <<'FAKE'
#!/bin/bash
echo "$*" >>scancel.log
kill -USR1 "$(cat srun.pid)"
FAKE
chmod +x "$work"/bin/*

# start VARIABLES... -- SCRIPT WORDS...: the script as Slurm would run it; leaves `status`.
start() {
    local variables=()
    while [ "$1" != -- ]; do variables+=("$1") && shift; done
    shift
    local script=$1
    shift
    rm -f "$work"/job/*.log "$work/job/srun.pid"
    (cd "$work/job" && exec env PATH="$work/bin:$PATH" SLURM_JOB_ID=7 SLURM_SUBMIT_DIR="$work/job" \
        SLURM_CPUS_PER_TASK=8 "${variables[@]}" bash "$source_folder/$script" "$@")
    status=$?
}
expect() { [ "$status" -eq "$1" ] || fail "$2: exit code $status, expected $1"; }
log() { cat "$work/job/$1.log" 2>/dev/null; }

start -- slurm/dp2ep.sbatch --experts 64
expect 0 "dp2ep.sbatch"
[ "$(log srun | wc -l)" -eq 1 ] || fail "dp2ep.sbatch: srun was called $(log srun | wc -l) times"
log srun | grep -q -- 'meshwork dp2ep .*-o dp2ep-7.h5 --experts 64' || fail "dp2ep.sbatch: wrong words: $(log srun)"
start FAKE_STATUS=65 -- slurm/dp2ep.sbatch
expect 65 "dp2ep.sbatch with bad input"
[ -z "$(log scontrol)" ] || fail "dp2ep.sbatch requeues a failure"
start FAKE_STATUS=75 -- slurm/dp2ep.sbatch
expect 75 "dp2ep.sbatch, interrupted"
[ "$(log scontrol)" = "requeue 7" ] || fail "dp2ep.sbatch does not requeue: '$(log scontrol)'"

printf '%s\n' '--experts 8' '--experts 64 --top_k 8' >"$work/job/list"
array=(SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=1)
start "${array[@]}" -- slurm/sweep.sbatch list
expect 0 "sweep.sbatch"
log srun | grep -q -- 'dp2ep --experts 64 --top_k 8 --force -o sweep-7-1.h5' || fail "sweep.sbatch: wrong words: $(log srun)"
touch "$work/job/sweep-7-1.h5"
start "${array[@]}" -- slurm/sweep.sbatch list
expect 0 "sweep.sbatch, a finished point"
[ -z "$(log srun)" ] || fail "sweep.sbatch runs a finished point again"
start SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=2 -- slurm/sweep.sbatch list 2>/dev/null
expect 2 "sweep.sbatch, a point that is not in the list"
start SLURM_ARRAY_JOB_ID=8 SLURM_ARRAY_TASK_ID=0 FAKE_STATUS=1 -- slurm/sweep.sbatch list
expect 1 "sweep.sbatch, a failed check"

# The signal arrives while srun runs: it must reach the step, and srun's own code must come out.
rm -f "$work/job/srun.pid"
(
    until [ -s "$work/job/srun.pid" ]; do sleep 0.1; done
    kill -USR1 "$(awk '/^PPid:/ { print $2 }' "/proc/$(cat "$work/job/srun.pid")/status")"
) &
start SLURM_ARRAY_JOB_ID=9 SLURM_ARRAY_TASK_ID=0 FAKE_TENTHS=100 -- slurm/sweep.sbatch list
wait
expect 75 "sweep.sbatch, interrupted"
[ "$(log scancel)" = "--signal=USR1 7.0" ] || fail "sweep.sbatch: the step got no signal: '$(log scancel)'"
[ "$(log scontrol)" = "requeue 7" ] || fail "sweep.sbatch does not requeue: '$(log scontrol)'"

[ $bad -eq 0 ] && echo "templates hold"
exit $bad
