#!/usr/bin/env bash
# kill -9 at a random moment, of one rank or of the whole job: every measurement that was told, or that stands in the
# journal, is in the result file or comes back with `results recover`, with the same raw samples.
# timeout: 600
# $1: the build folder. MOMENTS and SEED (environment): how often, 25 unless told, and which moments;
# program_kill_slow.sh asks for more.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

moments=${MOMENTS:-25}
SEED=${SEED:-$$}
RANDOM=$SEED
# Measuring takes some hundred milliseconds here, so that moments fall between journal lines.
words=(dp2ep --samples 8 --max_noise 0 --no-check --dtype f32 --tokens 100 --top_k 2 --dim 256 --hidden 256)
end_wait_s=30

milliseconds() { date +%s%3N; }
sleep_up_to_ms() { sleep "$(awk -v ms="$1" -v roll="$RANDOM" 'BEGIN { print ms / 1000 * roll / 32768 }')"; }
ranks_of() { awk -v job="$1" '/^Pid:/ { id = $2 } /^PPid:/ && $2 == job { print id }' /proc/[0-9]*/status 2>/dev/null; }

# Sets `job`. Disowned, so that bash does not report every death that is meant.
start_job() {
    mpirun --oversubscribe --bind-to none -n 2 "$program" "${words[@]}" -o "$1" >out 2>err </dev/null &
    job=$!
    disown
}

# Waits for r.journal, or for the end of the job.
await_journal() { while [ ! -e "$1" ] && kill -0 "$job" 2>/dev/null; do sleep 0.01; done; }

# await_end IDS...: false when one of them still lives after end_wait_s. A rank may outlive its mpirun by a little.
await_end() {
    local deadline=$(($(milliseconds) + end_wait_s * 1000)) id
    for id in "$@"; do
        while kill -0 "$id" 2>/dev/null && [ "$(milliseconds)" -lt $deadline ]; do sleep 0.02; done
        if kill -0 "$id" 2>/dev/null; then return 1; fi
    done
}

# Out of JSON without spaces: one line for each span of each measurement: "MEASUREMENT SPAN [[...],[...]]", its raw samples.
raw_samples() {
    grep -oE '"name":"[^"]*"|"seconds":\[(\[[^]]*\],?)*\]' | awk -F'"' '
        $2 == "name" { if (named) measurement = name; name = $4; named = 1; next }
        { sub(/^:/, "", $3); print measurement, name, $3; named = 0 }'
}

# Those of a journal's complete lines (a line is complete when it ends in a newline), and those of a result file.
journal_samples() {
    head -n "$(wc -l <"$1")" "$1" | grep -oE '\{"kind": ?"measurement".*' | tr -d ' ' | raw_samples
}
result_samples() {
    "$program" results show "$1" --json | tr -d ' \n' | sed -E 's/.*"measurements":\[//; s/"checks":\[.*//' | raw_samples
}

# "NAME SAMPLES" of each measurement that the program told of: the lines on stderr, then the table on stdout.
told_measurements() {
    sed -nE 's/^.* meshwork: measured ([a-z_]+): .*, ([0-9]+) samples?, noise [-0-9.]+.*$/\1 \2/p' err
    sed -nE 's/^measured +([a-z_]+): ([0-9]+) samples .*$/\1 \2/p' out
}

# How long a whole run takes, and from when on there is a journal: what the moments are spread over.
command_line="meshwork ${words[*]}"
began=$(milliseconds)
start_job whole.h5
await_journal whole.journal
start_ms=$(($(milliseconds) - began))
checks=$((checks + 1))
await_end "$job" || fail "$command_line: still runs after $end_wait_s s"
whole_ms=$(($(milliseconds) - began))
mapfile -t told < <(told_measurements)
checks=$((checks + 3))
[ "${told[*]}" = "forward 8 step 8 phases 8 forward 8 step 8 phases 8" ] || fail "a whole run tells of '${told[*]}'"
result_samples whole.h5 >whole
[ "$(grep -cE ' \[(\[[-0-9.e]+,[-0-9.e]+\],?){8}\]$' whole)" -ge 3 ] || fail "no 8 samples of 2 ranks in whole.h5"
[ "$(cut -d' ' -f1 whole | uniq | tr '\n' ' ')" = "forward step phases " ] || fail "whole.h5 has other measurements"

# What is owed after a kill: in the file $1, all that the journal holds, with its raw samples, and all that was told.
expect_kept() {
    local name samples rows
    result_samples "$1" >kept
    : >journalled
    if [ -e seen ]; then journal_samples seen >journalled; fi
    checks=$((checks + 1))
    if [ -e seen ] && ! cmp kept journalled >compared 2>&1; then
        fail "$command_line: $1 has other samples than the journal: $(cat compared)"
    fi
    while read -r name samples; do
        checks=$((checks + 1))
        rows=$(awk -v name="$name" '$1 == name { print gsub(/\],\[/, "") + 1; exit }' kept)
        [ "${rows:-none}" = "$samples" ] ||
            fail "$command_line: $name was told with $samples samples, in $1 it has ${rows:-none}"
    done < <(told_measurements)
}

journals=0 files=0 nothing=0 tellings=0
for ((moment = 0; moment < moments; moment++)); do
    rm -rf ./r.* back.h5 seen
    command_line="moment $moment (SEED=$SEED)"
    start_job r.h5
    # Every fourth moment lies anywhere, the others while there is a journal.
    if [ $((moment % 4)) -eq 0 ]; then
        sleep_up_to_ms "$whole_ms"
    else
        await_journal r.journal
        ln r.journal seen 2>/dev/null # a finished run removes its journal: this keeps what it held
        sleep_up_to_ms $((whole_ms - start_ms))
    fi
    mapfile -t ranks < <(ranks_of "$job")
    if [ $((RANDOM % 2)) -eq 0 ] && [ ${#ranks[@]} -gt 0 ]; then
        victims=("${ranks[RANDOM % ${#ranks[@]}]}")
    else
        victims=("${ranks[@]}" "$job")
    fi
    [ -e seen ] || ln r.journal seen 2>/dev/null
    kill -9 "${victims[@]}" 2>/dev/null

    # The rest of the job must not outlive it for long.
    checks=$((checks + 1))
    if ! await_end "$job" "${ranks[@]}"; then
        fail "$command_line: the job still runs $end_wait_s s after the kill"
        kill -9 "$job" "${ranks[@]}" 2>/dev/null
    fi

    if [ -e r.h5 ]; then
        files=$((files + 1))
        expect_kept r.h5
    elif [ -s r.journal ] && [ "$(wc -l <r.journal)" -gt 0 ]; then
        journals=$((journals + 1))
        mv out told.out && mv err told.err
        expect_good 0 results recover r.journal -o back.h5
        mv told.out out && mv told.err err
        command_line="moment $moment (SEED=$SEED), recovered"
        expect_kept back.h5
        tellings=$((tellings + $(told_measurements | wc -l)))
    else
        nothing=$((nothing + 1)) checks=$((checks + 1))
        [ -z "$(told_measurements)" ] || fail "$command_line: $(told_measurements) were told, and nothing is left"
    fi
done
echo "$moments moments, a journal from $start_ms to $whole_ms ms: $files left a result file, $journals a journal, $nothing neither"
echo "$tellings measurements were told before a kill that left a journal"

# Moments that only ever met one of the three would prove little.
checks=$((checks + 1))
[ "$moments" -lt 20 ] || [ "$journals" -gt 0 ] || fail "no kill left a journal: the moments miss what matters"
[ "$moments" -lt 20 ] || [ "$tellings" -gt 0 ] || fail "nothing was told before any kill: the moments miss what matters"
expect_no_core
finish
