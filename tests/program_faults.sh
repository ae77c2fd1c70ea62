#!/usr/bin/env bash
# Ranks that leave the common order of collectives, stop, sleep, or are gone: the job ends in time, with 124 or the
# fault's own code and one message that names rank, collective and phase; what was journalled before is there.
# timeout: 900
# $1: the build folder. FAULTS=all (environment): every fault in every phase on 2, 4 and 8 ranks; else a sample.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# When a rank dies, mpirun gives the survivors a second between TERM and KILL: that is the time of their report.
unset OMPI_MCA_odls_base_sigkill_timeout

watchdog_s=2 margin_s=6 run_limit_s=60
if [ "${FAULTS:-}" = all ]; then watchdog_s=4 margin_s=12; fi
words=(dp2ep --experts 8 --top_k 2 --tokens 9 --dim 16 --hidden 24 --dtype f32 --max_noise 0)

declare -A code=([skip]=124 [other]=124 [count]=124 [dtype]=124 [stop]=124 [sleep]=124 [exit]=42 [kill]=137)
# Where a fault of that phase falls: the phase or span that the message must name.
declare -A place=([set-up]='phase set-up, span none' [dispatch]='phase first step, span forward/dispatch'
    [combine]='phase first step, span forward/combine' [backward]='phase first step, span backward/dispatch'
    [reduce]='phase first step, span reduce' [gather]='phase gather, span none'
    [time]='phase phases, span none' [write]='phase write, span none')
declare -A at=([set-up]=set-up [dispatch]=forward/dispatch [combine]=forward/combine [backward]=backward/dispatch
    [reduce]=reduce [gather]=gather [time]=phases [write]=write)
kinds=(skip other count dtype stop sleep exit kill)
phases=(set-up dispatch combine backward reduce gather time write)

seconds() { date +%s.%N; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a < b) }'; }

# A run without a fault, for comparison: nobody is blamed, and how long it takes.
declare -A whole_s
measure() { # measure RANKS
    local began
    began=$(seconds)
    expect_good "$1" "${words[@]}" --samples 2 --watchdog_s $watchdog_s
    whole_s[$1]=$(awk -v a="$began" -v b="$(seconds)" 'BEGIN { print b - a }')
}

# fault RANKS RANK KIND PHASE
fault() {
    local ranks=$1 rank=$2 kind=$3 phase=$4 samples=0 began took_s limit_s messages fixes
    rm -f r.h5 r.journal
    case $phase in time | write) samples=2 ;; esac
    began=$(seconds)
    run "$ranks" "${words[@]}" --samples $samples --watchdog_s $watchdog_s --fault "$kind@$rank:${at[$phase]}" -o r.h5
    took_s=$(awk -v a="$began" -v b="$(seconds)" 'BEGIN { print b - a }')
    limit_s=$(awk -v a="${whole_s[$ranks]}" -v b=$watchdog_s -v c=$margin_s 'BEGIN { print a + b + c }')
    expect_status "${code[$kind]}"
    checks=$((checks + 3))
    less "$took_s" "$limit_s" || fail "$command_line: took $took_s s, expected less than $limit_s s"
    messages=$(grep -c 'meshwork: error:' err) fixes=$(grep -c '^fix: ' err)
    [ "$messages" -eq 1 ] || fail "$command_line: $messages messages instead of one"
    [ "$fixes" -eq 1 ] || fail "$command_line: $fixes fix lines instead of one"
    expect_text err "meshwork: error: .*rank $rank\b.*collective [0-9]+ of (job|world|ep)\b.*${place[$phase]}"
    expect_text err "meshwork: error: .*\(parallel/ledger[a-z_]*\.c:[0-9]+, rank $rank of $ranks"
    expect_no_core
    case $phase in
    time) expect_measurements forward step ;;
    write) expect_measurements forward step phases ;;
    esac
}

# What was measured before the fault is in the journal; rank 0 may have made the result file of it already.
expect_measurements() {
    local name
    checks=$((checks + 1))
    [ -s r.journal ] || [ -s r.h5 ] || { fail "$command_line: neither journal nor result file" && return; }
    if [ ! -s r.h5 ]; then expect_good 0 results recover r.journal -o r.h5; fi
    expect_good 0 results show r.h5
    for name in "$@"; do expect_text out "^measured +$name:"; done
}

if [ "${FAULTS:-}" = all ]; then
    for ranks in 2 4 8; do
        measure $ranks
        for phase in "${phases[@]}"; do
            for kind in "${kinds[@]}"; do fault $ranks $((ranks - 1)) "$kind" "$phase"; done
        done
    done
    for kind in "${kinds[@]}"; do fault 4 0 "$kind" backward; done
    finish
fi

measure 2
fault 2 1 skip dispatch
fault 2 1 dtype gather
fault 2 1 sleep write
fault 2 1 exit reduce
fault 2 1 count set-up
fault 2 1 kill time
measure 4
fault 4 3 skip combine
fault 4 3 count backward
fault 4 2 other reduce
fault 4 1 stop gather
fault 4 0 stop dispatch
fault 4 0 kill backward
fault 4 0 sleep combine

# Without the watchdog nobody ends a job in which a rank sleeps: it is the watchdog that did it above.
checks=$((checks + 1))
run_limit_s=5
run 2 "${words[@]}" --samples 0 --watchdog_s 0 --fault sleep@1:gather
[ "$status" -eq 124 ] && ! grep -q 'meshwork: error:' err ||
    fail "$command_line: exit code $status without a watchdog; timeout(1) should have ended it"
finish
