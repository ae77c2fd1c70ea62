#!/usr/bin/env bash
# Ranks that leave the common order of collectives, stop, sleep, or are gone: the job ends in time, with 124 or the
# fault's own code and one message that names rank, collective and phase; what was journalled before is there, and no
# process stays. A job that is only told to stop, or slow, is left alone.
# timeout: 900
# $1: the build folder. FAULTS=all (environment): every fault in every phase on 2, 4 and 8 ranks (RANKS); else a sample.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# When a rank dies, mpirun gives the survivors a second between TERM and KILL: that is the time of their report.
unset OMPI_MCA_odls_base_sigkill_timeout

watchdog_s=2 margin_s=6 run_limit_s=60
if [ "${FAULTS:-}" = all ]; then watchdog_s=4 margin_s=12; fi

declare -A words=(
    [dp2ep]='dp2ep --experts 8 --top_k 2 --tokens 9 --dim 16 --hidden 24 --dtype f32 --max_noise 0'
    [parallelisms]='parallelisms --mesh dp=*,tp=2 --experts 6 --max_noise 0'
    [redistribute]='redistribute --shape 61,7 --mesh a=*,b=2 --from S0,P --to R,S1')
declare -A code=([skip]=124 [other]=124 [count]=124 [dtype]=124 [stop]=124 [sleep]=124 [exit]=42 [kill]=137)
# Where a fault of a phase falls, WHERE of --fault; and how the message must name it.
declare -A at=([set-up]=set-up [dispatch]=forward/dispatch [combine]=forward/combine [backward]=backward/dispatch
    [reduce]=reduce [gather]=gather [time]=phases [write]=write
    [train-forward]=forward [train-backward]=backward [optimise]=optimise [result]=gather [check]=check [steps]=time
    [end]=write [move]=redistribute [wire]=check [replays]=time)
declare -A place=([set-up]='phase set-up, span none' [dispatch]='phase first step, span forward/dispatch'
    [combine]='phase first step, span forward/combine' [backward]='phase first step, span backward/dispatch'
    [reduce]='phase first step, span reduce' [gather]='phase gather, span none'
    [time]='phase phases, span none' [write]='phase write, span none'
    [train-forward]='phase train, span forward' [train-backward]='phase train, span backward'
    [optimise]='phase train, span optimise' [result]='phase gather, span none' [check]='phase check, span none'
    [steps]='phase time, span (none|total)' [end]='phase write, span none'
    [move]='phase redistribute, span none' [wire]='phase check, span none' [replays]='phase time, span none')
declare -A phases=([dp2ep]='set-up dispatch combine backward reduce gather time write'
    [parallelisms]='set-up train-forward train-backward optimise result check steps end'
    [redistribute]='set-up move wire replays')
kinds=(skip other count dtype stop sleep exit kill)

seconds() { date +%s.%N; }
less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a < b) }'; }

# Whether processes of ours that began here are still there after a while. A rank may outlive its mpirun by a little.
stray() {
    local round process found
    for round in $(seq 50); do
        found=
        for process in /proc/[0-9]*; do
            if [ "$process/exe" -ef "$program" ] && [ "$process/cwd" -ef . ]; then found=${process#/proc/}; fi
        done
        if [ -z "$found" ]; then return 1; fi
        sleep 0.1
    done
    echo "process $found is still there after $round looks"
}

# fault COMMAND RANKS RANK KIND PHASE
fault() {
    local command=$1 ranks=$2 rank=$3 kind=$4 phase=$5 samples=0 arguments began took_s limit_s messages fixes left where
    case $phase in time | write | steps | end) samples=2 ;; esac
    read -ra arguments <<<"${words[$command]}"
    if [ "$command" != redistribute ]; then arguments+=(--samples $samples -o r.h5); fi
    began=$(seconds)
    run "$ranks" "${arguments[@]}" --watchdog_s $watchdog_s --fault "$kind@$rank:${at[$phase]}"
    took_s=$(awk -v a="$began" -v b="$(seconds)" 'BEGIN { print b - a }')
    limit_s=$(awk -v a="$(cat "$work/whole_s")" -v b=$watchdog_s -v c=$margin_s 'BEGIN { print 2 * a + b + c }')
    expect_status "${code[$kind]}"
    checks=$((checks + 4))
    less "$took_s" "$limit_s" || fail "$command_line: took $took_s s, expected less than $limit_s s"
    messages=$(grep -c 'meshwork: error:' err) fixes=$(grep -c '^fix: ' err)
    [ "$messages" -eq 1 ] || fail "$command_line: $messages messages instead of one"
    [ "$fixes" -eq 1 ] || fail "$command_line: $fixes fix lines instead of one"
    left=$(stray) && fail "$command_line: $left"
    where=${place[$phase]}
    # Where nobody waits for a rank that is gone, its last words are all that is known: it spoke a moment before.
    if [[ $kind == exit || $kind == kill ]] && grep -q 'last heard of at collective' err; then where='phase '; fi
    expect_text err "meshwork: error: .*rank $rank\b.*collective [0-9]+ of [a-z0-9#* ]+ .*$where"
    expect_text err "meshwork: error: .*\(parallel/ledger[a-z_]*\.c:[0-9]+, rank $rank of $ranks"
    case $kind in stop | sleep) expect_text err 'meshwork: error: .*; ranks? [-0-9, ]+ waiting in collective' ;; esac
    expect_no_core
    case $command:$phase in
    dp2ep:time) expect_measurements forward step ;;
    dp2ep:write) expect_measurements forward step phases ;;
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

# Told to stop while all are there: a request, as without a watchdog.
interrupted() {
    local job status left
    mpirun --oversubscribe --bind-to none -n 2 "$program" dp2ep --dtype f32 --dim 64 --samples 100000 --timeout 50 \
        --max_noise 0 --watchdog_s 3 -o r.h5 >out 2>err </dev/null &
    job=$!
    command_line="meshwork dp2ep, SIG$1 to mpirun"
    while [ ! -e r.journal ] && kill -0 $job 2>/dev/null; do sleep 0.05; done
    kill -s "$1" $job
    wait $job
    status=$?
    checks=$((checks + 1))
    ! grep -q 'meshwork: error:' err || fail "$command_line: an error message (exit code $status)"
    left=$(stray) && fail "$command_line: $left"
}

# crowded WORD...: eight ranks on however few cores, and processes that take these away too: slow, and nothing wrong.
crowded() {
    local burners=() i
    for i in 1 2 3 4; do
        timeout 60 sh -c 'while :; do :; done' &
        burners+=($!)
    done
    expect_good 8 "$@" --watchdog_s 4
    kill "${burners[@]}"
}

# Without the watchdog nobody ends a job in which a rank sleeps: it is the watchdog that does it elsewhere.
unwatched() {
    run_limit_s=4
    read -ra arguments <<<"${words[dp2ep]}"
    run 2 "${arguments[@]}" --samples 0 --watchdog_s 0 --fault sleep@1:gather
    checks=$((checks + 1))
    [ "$status" -eq 124 ] && ! grep -q 'meshwork: error:' err ||
        fail "$command_line: exit code $status without a watchdog; timeout(1) should have ended it"
}

# whole RANKS: how long a run without a fault takes, in which nobody is blamed either. Several at once take longer.
whole() {
    local command began
    for command in "${!words[@]}"; do
        read -ra arguments <<<"${words[$command]}"
        if [ "$command" != redistribute ]; then arguments+=(--samples 2); fi
        began=$(seconds)
        expect_good "$1" "${arguments[@]}" --watchdog_s $watchdog_s
        awk -v a="$began" -v b="$(seconds)" 'BEGIN { print b - a }'
    done | sort -g | tail -n 1 >"$work/whole_s"
}

# Ranks that hang need no processor, so several cases run at once, each in a folder of its own.
at_once=4 cases=0
start() { # start FUNCTION ARGUMENT...
    while [ "$(jobs -rp | wc -l)" -ge $at_once ]; do wait -n; done
    cases=$((cases + 1))
    mkdir "$work/$cases"
    (
        cd "$work/$cases" || exit
        failures=0 checks=0
        "$@" >told
        echo "$checks $failures" >counted
    ) &
}
# Adds up what they found.
await_all() {
    local case counted
    wait
    for ((case = 1; case <= cases; case++)); do
        cat "$work/$case/told"
        read -ra counted <"$work/$case/counted" || { fail "case $case did not end" && continue; }
        checks=$((checks + counted[0])) failures=$((failures + counted[1]))
        rm -rf "${work:?}/$case"
    done
    cases=0
}

if [ "${FAULTS:-}" = all ]; then
    for ranks in ${RANKS:-2 4 8}; do
        whole $ranks
        for command in "${!words[@]}"; do
            for phase in ${phases[$command]}; do
                for kind in "${kinds[@]}"; do start fault "$command" $ranks $((ranks - 1)) "$kind" "$phase"; done
            done
        done
        await_all
    done
    for kind in "${kinds[@]}"; do start fault dp2ep 4 0 "$kind" backward; done
    await_all
    for round in 1 2 3; do
        crowded dp2ep --experts 8 --samples 3 --max_noise 0
        crowded parallelisms --mesh 'dp=*,tp=2' --experts 6 --samples 3 --max_noise 0
        crowded redistribute --shape 301,70 --mesh 'a=*,b=2' --from S0,P --to R,S1
    done
    finish
fi

whole 8
start fault dp2ep 2 1 skip dispatch
start fault dp2ep 2 1 dtype gather
start fault dp2ep 2 1 sleep write
start fault dp2ep 2 1 exit reduce
start fault dp2ep 2 1 count set-up
start fault dp2ep 2 1 kill time
start fault dp2ep 4 3 skip combine
start fault dp2ep 4 3 count backward
start fault dp2ep 4 2 other reduce
start fault dp2ep 4 1 stop gather
start fault dp2ep 4 0 stop dispatch
start fault dp2ep 4 0 kill backward
start fault dp2ep 4 0 sleep combine
start fault dp2ep 8 5 stop time
start fault parallelisms 4 3 skip train-backward
start fault parallelisms 4 2 exit optimise
start fault redistribute 4 2 other move
start interrupted TERM
start interrupted INT
start unwatched
await_all
crowded parallelisms --mesh 'dp=*,tp=2' --samples 1
finish
