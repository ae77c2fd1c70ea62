#!/usr/bin/env bash
# kill -9 at a random moment, of one rank or of the whole job: every measurement that was printed, or that stood in the
# journal, is in the result file or comes back with `results recover`.
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

# The names of the measurements in a journal's complete lines; a line is complete when it ends in a newline.
journal_names() {
    head -n "$(wc -l <"$1")" "$1" | grep -oE '"kind": ?"measurement", ?"name": ?"[^"]+"' | sed -E 's/.*"([^"]+)"$/\1/'
}

# The names in the lines "measured  NAME: ..." of what the program printed.
printed_names() { sed -nE 's/^measured +([a-z_]+):.*/\1/p' "$1"; }

# How long a whole run takes, and from when on there is a journal: what the moments are spread over.
command_line="meshwork ${words[*]}"
began=$(milliseconds)
start_job whole.h5
await_journal whole.journal
start_ms=$(($(milliseconds) - began))
checks=$((checks + 1))
await_end "$job" || fail "$command_line: still runs after $end_wait_s s"
whole_ms=$(($(milliseconds) - began))
expect_good 0 results show whole.h5
mapfile -t measurements < <(printed_names out)
checks=$((checks + 1))
[ ${#measurements[@]} -eq 3 ] || fail "a whole run shows the measurements '${measurements[*]}'"

shows() { # shows FILE NAME: the result has that measurement
    checks=$((checks + 1))
    "$program" results show "$1" >shown 2>&1 || fail "moment $moment: results show $1 failed: $(cat shown)"
    printed_names shown | grep -x "$2" >/dev/null || fail "moment $moment (SEED=$SEED): $2 was measured and is not in $1"
}

journals=0 files=0 nothing=0
for ((moment = 0; moment < moments; moment++)); do
    rm -rf ./r.* back.h5 seen
    command_line="moment $moment (SEED=$SEED)"
    start_job r.h5
    # Every fourth moment lies anywhere, the others while there is a journal.
    if [ $((moment % 4)) -eq 0 ]; then
        sleep_up_to_ms "$whole_ms"
    else
        await_journal r.journal
        sleep_up_to_ms $((whole_ms - start_ms))
    fi
    mapfile -t ranks < <(ranks_of "$job")
    if [ $((RANDOM % 2)) -eq 0 ] && [ ${#ranks[@]} -gt 0 ]; then
        victims=("${ranks[RANDOM % ${#ranks[@]}]}")
    else
        victims=("${ranks[@]}" "$job")
    fi
    cp r.journal seen 2>/dev/null
    kill -9 "${victims[@]}" 2>/dev/null

    # The rest of the job must not outlive it for long.
    checks=$((checks + 1))
    if ! await_end "$job" "${ranks[@]}"; then
        fail "$command_line: the job still runs $end_wait_s s after the kill"
        kill -9 "$job" "${ranks[@]}" 2>/dev/null
    fi

    if [ -e r.h5 ]; then
        files=$((files + 1))
        kept=r.h5
    elif [ -s r.journal ] && [ "$(wc -l <r.journal)" -gt 0 ]; then
        journals=$((journals + 1))
        cp out printed
        expect_good 0 results recover r.journal -o back.h5
        cp printed out
        kept=back.h5
    else
        nothing=$((nothing + 1))
        kept=''
    fi
    # Owed: what the table on stdout shows, and what the journal held when the blow fell.
    owed=$(
        printed_names out
        [ -e seen ] && journal_names seen
        [ -e r.journal ] && journal_names r.journal
    )
    while read -r name; do
        if [ -n "$kept" ]; then shows "$kept" "$name"; else fail "$command_line: $name was measured, and nothing is left"; fi
    done < <(sort -u <<<"$owed" | grep .)
done
echo "$moments moments, a journal from $start_ms to $whole_ms ms: $files left a result file, $journals a journal, $nothing neither"

# Moments that only ever met one of the three would prove little.
checks=$((checks + 1))
[ "$moments" -lt 20 ] || [ "$journals" -gt 0 ] || fail "no kill left a journal: the moments miss what matters"
expect_no_core
finish
