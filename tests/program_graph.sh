#!/usr/bin/env bash
# `meshwork graph` and `meshwork trace_merge` from the command line: what they print, gzip and standard input, exit codes,
# and no file left behind after an error.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"
logs=$golden/torch_logs

expect_no_file() {
    checks=$((checks + 1))
    [ -z "$(compgen -G "$1*")" ] || fail "$command_line: left $(compgen -G "$1*")"
}

# ---- graph ----
expect_good 0 graph "$logs/train.short.txt"
expect_text out 'forward 0 +9 +36 +20 +0_forward'
expect_text out 'triton_poi_fused_mul_silu_1 +pointwise +2 +256 KiB +128 KiB'
expect_text out 'extern calls: 18'
expect_text err '968 lines read, 963 understood, 5 known noise, 0 not understood'
expect_good 0 graph "$logs/train.short.txt" --json
cp out train.json
expect_text out '"kind": "backward"'
expect_text out '"extern_calls": 18'
expect_text out '"placeholders": 20'
expect_text out '"unknown": 0'

# gzip and standard input say the same.
gzip -c "$logs/train.short.txt" >train.txt.gz
expect_good 0 graph train.txt.gz --json
expect_same out train.json "gzip"
"$program" graph - --json <"$logs/train.short.txt" >piped.json 2>/dev/null
expect_same piped.json train.json "standard input"
head -c 9000 train.txt.gz >cut.txt.gz
run 0 graph cut.txt.gz
expect_status 0
expect_text err 'gzip data end too early'

# Several files are several ranks.
expect_good 0 graph "$logs/fp8.short.txt" "$logs/infer.short.txt" --json -o two.html
expect_text out '"rank": 1'
expect_text two.html 'rank 1'

# A page needs no network and holds no markup of the log's.
expect_good 0 graph "$logs/train.short.txt" -o page.html
expect_text page.html "default-src 'none'"
checks=$((checks + 1))
! grep -qE '(src|href)="?(https?:)?//' page.html || fail "page.html refers to the network"
expect_error 73 'page.html exists already' 0 graph "$logs/train.short.txt" -o page.html
expect_good 0 graph "$logs/train.short.txt" -o page.html --force

# Our own runs: the phases of each measurement.
expect_good 2 dp2ep --mesh ep=2 --samples 5 -o r.h5
expect_good 0 graph r.h5 -o run.html
expect_text out 'forward/dispatch'
expect_text run.html '"forward/dispatch"'
expect_text run.html 'collective: it sends to other ranks'
head -c 3000 r.h5 >damaged.h5
expect_error 65 'damaged.h5' 0 graph damaged.h5 -o x.html

expect_error 66 'no file nowhere.txt' 0 graph nowhere.txt -o x.html
expect_error 66 'is a folder' 0 graph . -o x.html
expect_error 2 'needs a log' 0 graph -o x.html
printf 'hello\nworld\n' >plain.txt
expect_error 65 'plain.txt holds no graph and no kernel: its 2 lines end at line 2' 0 graph plain.txt -o x.html
: >empty.txt
expect_error 65 'empty.txt holds no graph' 0 graph empty.txt -o x.html
expect_error 73 'no-folder' 0 graph "$logs/train.short.txt" -o no-folder/x.html
printf '\x1f\x8b\x08\x00damaged damaged damaged' >bad.gz
expect_error 65 'bad.gz' 0 graph bad.gz -o x.html
expect_no_file x.html

# ---- trace_merge ----
expect_good 0 trace_merge "$logs/train.trace.json" "$logs/train.prefix.txt" -o merged.json --strict
expect_text out 'kernel events +100, 16 of them generated'
expect_text err '100 kernel events, 76 merged, 24 not merged'
expect_text merged.json '"graph": "0_backward"'
expect_good 0 trace_merge "$logs/train.trace.json" "$logs/train.prefix.txt" --json
expect_text out '"generated_kernel_events": 16'
expect_text out '"why": "not launched by code that is in the log"'
expect_good 0 trace_merge "$logs/infercpu.trace.json" "$logs/infercpu.short.txt" -o cpu.json --json
expect_text out '"kernel_events": 0'

# The log of another program: not an error, unless asked.
expect_good 0 trace_merge "$logs/train.trace.json" "$logs/layernorm.short.txt" -o other.json
expect_error 1 '16 of 16 events of generated kernels were not merged' 0 \
    trace_merge "$logs/train.trace.json" "$logs/layernorm.short.txt" --strict

gzip -c "$logs/train.trace.json" >trace.json.gz
expect_good 0 trace_merge trace.json.gz train.txt.gz -o merged.json.gz
expect_good 0 trace_merge trace.json.gz train.txt.gz -o merged2.json
gzip -dc merged.json.gz >unpacked.json
expect_same unpacked.json merged2.json "gzip out"

expect_error 73 'merged.json exists already' 0 trace_merge "$logs/train.trace.json" "$logs/train.short.txt" -o merged.json
expect_error 66 'no file nowhere' 0 trace_merge nowhere.json "$logs/train.short.txt" -o y.json
expect_error 66 'no file nowhere' 0 trace_merge "$logs/train.trace.json" nowhere.txt -o y.json
expect_error 66 'is a folder' 0 trace_merge . "$logs/train.short.txt" -o y.json
expect_error 2 'needs a trace and a log' 0 trace_merge "$logs/train.trace.json" -o y.json
expect_error 2 'standard input' 0 trace_merge - "$logs/train.short.txt" -o y.json
expect_error 65 'no valid JSON at byte 0' 0 trace_merge "$logs/train.short.txt" "$logs/train.short.txt" -o y.json
head -c 100000 "$logs/train.trace.json" >cut.json
expect_error 65 'ends too early' 0 trace_merge cut.json "$logs/train.short.txt" -o y.json
expect_error 65 'holds no graph' 0 trace_merge "$logs/train.trace.json" "$logs/train.trace.json" -o y.json
expect_no_file y.json

# ---- large files: 150 MB of trace, 70 MB of log ----
# Traces stream through; of a log only counts and kernels stay when no page is wanted.
repeated() { # repeated COUNT FILE SEPARATOR: the file that often
    local i
    for ((i = 0; i < $1; i++)); do
        if [ "$i" -gt 0 ]; then printf '%s' "$3"; fi
        cat "$2"
    done
}
copies=900
if is_sanitized; then copies=30; fi
sed '1,/"traceEvents": \[/d; /^  \],$/,$d' "$logs/train.trace.json" >events
{ printf '{"traceEvents": [\n' && repeated $copies events ',' && printf ']}\n'; } >large.json
repeated $copies "$logs/train.short.txt" '' >large.txt
command_line="trace_merge of a large trace"
"$build/tool_peak_memory" peak "$program" trace_merge large.json "$logs/train.short.txt" -o large.merged.json --json >out 2>err
status=$?
expect_status 0
expect_text out "\"merged\": $((76 * copies)),"
expect_peak_below 80000000
rm -f large.json large.merged.json
command_line="graph of a large log"
"$build/tool_peak_memory" peak "$program" graph large.txt --json >out 2>err
status=$?
expect_status 0
expect_text out "\"extern_calls\": $((18 * copies))"
expect_peak_below 70000000

finish
