#!/usr/bin/env bash
# kill -9 at a random moment, of one rank or of the whole job: every measurement that was printed, or that stood in the
# journal, is in the result file or comes back with `results recover`.
# $1: the build folder. MOMENTS and SEED (environment): how often, 100 unless told, and which moments.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

moments=${MOMENTS:-100}
SEED=${SEED:-$$}
RANDOM=$SEED
words=(dp2ep --samples 3 --max_noise 0 --tokens 6 --top_k 2)
end_wait_s=30

milliseconds() { date +%s%3N; }
start_job() { mpirun --oversubscribe --bind-to none -n 2 "$program" "${words[@]}" -o "$1" >out 2>err </dev/null & }
ranks_of() { awk -v job="$1" '/^Pid:/ { id = $2 } /^PPid:/ && $2 == job { print id }' /proc/[0-9]*/status 2>/dev/null; }

# The names of the measurements in a journal's complete lines; a line is complete when it ends in a newline.
journal_names() {
    head -n "$(wc -l <"$1")" "$1" | grep -oE '"kind": ?"measurement", ?"name": ?"[^"]+"' | sed -E 's/.*"([^"]+)"$/\1/'
}

# How long a whole run takes; moments are spread over it and a little more.
began=$(milliseconds)
start_job whole.h5
wait $!
status=$? command_line="meshwork ${words[*]}"
expect_status 0
whole_ms=$(($(milliseconds) - began + 50))
expect_good 0 results show whole.h5
mapfile -t measurements < <(grep -owE 'forward|step|phases' out | sort -u)
checks=$((checks + 1))
[ ${#measurements[@]} -eq 3 ] || fail "a whole run shows the measurements '${measurements[*]}'"

shows() { # shows FILE NAME: the result has that measurement
    checks=$((checks + 1))
    "$program" results show "$1" >shown 2>&1 || fail "moment $moment: results show $1 failed: $(cat shown)"
    grep -qw -- "$2" shown || fail "moment $moment (SEED=$SEED): $2 was measured and is not in $1"
}

journals=0 files=0 nothing=0
for ((moment = 0; moment < moments; moment++)); do
    rm -rf ./r.* back.h5 seen
    start_job r.h5
    job=$!
    sleep "$(printf '0.%03d' $((RANDOM * 1000 / 32768)) | awk -v whole="$whole_ms" '{ print $1 * whole / 1000 }')"
    mapfile -t victims < <(ranks_of "$job")
    if [ $((RANDOM % 2)) -eq 0 ] && [ ${#victims[@]} -gt 0 ]; then
        victims=("${victims[RANDOM % ${#victims[@]}]}")
    else
        victims+=("$job")
    fi
    cp r.journal seen 2>/dev/null
    kill -9 "${victims[@]}" 2>/dev/null

    # The rest of the job must not outlive it for long.
    command_line="moment $moment (SEED=$SEED)"
    deadline=$(($(milliseconds) + end_wait_s * 1000))
    while kill -0 "$job" 2>/dev/null && [ "$(milliseconds)" -lt $deadline ]; do sleep 0.02; done
    checks=$((checks + 1))
    if kill -0 "$job" 2>/dev/null; then
        fail "$command_line: the job still runs $end_wait_s s after the kill"
        kill -9 "$job"
    fi
    wait "$job" 2>/dev/null

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
        grep -owE "$(IFS='|' && echo "${measurements[*]}")" out
        [ -e seen ] && journal_names seen
        [ -e r.journal ] && journal_names r.journal
    )
    while read -r name; do
        if [ -n "$kept" ]; then shows "$kept" "$name"; else fail "$command_line: $name was measured, and nothing is left"; fi
    done < <(sort -u <<<"$owed" | grep .)
done
echo "$moments moments over $whole_ms ms: $files left a result file, $journals a journal, $nothing neither"

# Moments that only ever met one of the three would prove little.
checks=$((checks + 1))
[ "$moments" -lt 20 ] || [ "$journals" -gt 0 ] || fail "no kill left a journal: the moments miss what matters"
expect_no_core
finish
