#!/usr/bin/env bash
# Faults of program_faults.sh on two GPUs, over each transport: ranks that leave out a call, stop, sleep, are killed, or
# whose kernel traps. What waits there is a stream, not a function.
# labels: gpu2
# timeout: 600
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

unset OMPI_MCA_odls_base_sigkill_timeout # the survivors' time
watchdog_s=5 limit_s=45 run_limit_s=90
words=(dp2ep --device cuda --experts 8 --top_k 2 --tokens 64 --dim 64 --hidden 64 --samples 0 --watchdog_s $watchdog_s)

# fault TRANSPORT KIND WHERE CODE PATTERN...: each pattern is in the one message.
fault() {
    local transport=$1 kind=$2 where=$3 wanted=$4 messages began=$SECONDS pattern
    shift 4
    run 2 "${words[@]}" --transport "$transport" --fault "$kind@1:$where"
    expect_status "$wanted"
    checks=$((checks + 2))
    [ $((SECONDS - began)) -lt $limit_s ] || fail "$command_line: took $((SECONDS - began)) s"
    messages=$(grep -c 'meshwork: error:' err)
    [ "$messages" -eq 1 ] || fail "$command_line: $messages messages instead of one"
    for pattern in "$@"; do expect_text err "$pattern"; done
    expect_no_core
}

for transport in window nccl; do
    expect_good 2 "${words[@]}" --transport $transport
    fault $transport skip forward/combine 124 'rank 1\b.*collective [0-9]+ of experts\b.*phase first step, span forward/combine'
    fault $transport sleep forward/combine 124 'rank 1\b.*not come to collective [0-9]+ of experts\b.*span forward/combine'
    fault $transport stop forward/dispatch 124 'rank 1\b.*not come to collective [0-9]+ of experts\b.*span forward/dispatch'
    fault $transport kill forward/combine 137 'rank 1\b.*is gone.*collective [0-9]+ of'
    # The rank whose kernel trapped says so itself, and where it and the other stand.
    fault $transport trap forward/dispatch 69 'error: .*rank 1 of 2' '^meanwhile: .*rank 1 (in|after) collective [0-9]+ of'
done
fault window other backward/dispatch 124 'rank 1\b.*collective [0-9]+ of experts\b.*peer_barrier'
fault nccl count forward/combine 124 'rank 1\b.*collective [0-9]+ of experts\b.*all_to_all'
fault ipc skip backward/combine 124 'rank 1\b.*collective [0-9]+ of experts\b.*peer_barrier'
fault nccl sleep gather 124 'rank 1\b.*not come to collective [0-9]+ of job\b.*phase gather'
# A graph's replays are calls too.
words+=(--samples 3)
fault nccl sleep forward 124 'rank 1\b.*not come to collective [0-9]+ of (job|world)\b.*phase forward'
finish
