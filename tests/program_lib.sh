# program_lib.sh -- what the whole-program tests share; they source it with the build folder as $1.
#
# A test runs the program as a user would and asks for exit codes, messages and files. Every run has a time limit, so
# that a hang is a failure with a name. `finish` at the end of a script gives its exit code.
# shellcheck shell=bash
set -uo pipefail

build=$(cd "${1:?the build folder}" && pwd)
program=$build/meshwork
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # for the scripts that source this
golden=$source_folder/tests/golden
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
# After a failure mpirun gives the other ranks a second between TERM and KILL; over hundreds of failures that is minutes.
export OMPI_MCA_odls_base_sigkill_timeout=0

[ -x "$program" ] || { echo "no program: $program" && exit 1; }

work=$(mktemp -d)
leave() {
    cd /
    rm -rf "$work"
}
trap leave EXIT
cd "$work" || exit 1
ulimit -c unlimited 2>/dev/null

failures=0 checks=0 printed_for=none
run_limit_s=120 # under sanitizers on a busy machine a run takes seconds, not minutes

is_sanitized() { grep -q __asan_init "$program"; } # such a build is slow and has its own memory

# Says what is wrong, and once per run what the program printed.
fail() {
    failures=$((failures + 1))
    echo "FAILED: $*"
    if [ "${command_line:-}" = "$printed_for" ]; then return; fi
    printed_for=${command_line:-}
    if [ -s out ]; then sed 's/^/  stdout: /' out | head -n 20; fi
    if [ -s err ]; then sed 's/^/  stderr: /' err | head -n 20; fi
}

finish() {
    echo "$checks checks, $failures failed"
    [ "$checks" -gt 0 ] && [ "$failures" -eq 0 ]
    exit
}

# run RANKS WORD...: the program on that many ranks (0: without mpirun). Leaves `status` and the files out and err.
run() {
    local ranks=$1 start=()
    shift
    command_line="meshwork $*, ranks: $ranks"
    if [ "$ranks" -gt 0 ]; then start=(mpirun --oversubscribe --bind-to none -n "$ranks"); fi
    timeout --kill-after=5 "$run_limit_s" "${start[@]}" "$program" "$@" >out 2>err </dev/null
    status=$?
}

expect_status() {
    checks=$((checks + 1))
    [ "$status" -eq "$1" ] || fail "$command_line: exit code $status, expected $1"
}

# expect_text FILE REGEX
expect_text() {
    checks=$((checks + 1))
    grep -qE -- "$2" "$1" || fail "$command_line: no '$2' in $1"
}

# expect_good RANKS WORD...: exit code 0 and no message of ours.
expect_good() {
    run "$@"
    expect_status 0
    checks=$((checks + 1))
    ! grep -q 'meshwork: error:' err || fail "$command_line: an error message and exit code 0"
}

# expect_error STATUS REGEX RANKS WORD...: that exit code, one message of the fixed form that matches, no crash, no core.
expect_error() {
    local wanted=$1 pattern=$2 messages fixes
    shift 2
    run "$@"
    expect_status "$wanted"
    expect_text err "meshwork: error: .*$pattern"
    messages=$(grep -c 'meshwork: error:' err) fixes=$(grep -c 'fix: ' err)
    checks=$((checks + 3))
    [ "$messages" -eq 1 ] || fail "$command_line: $messages messages instead of one"
    [ "$fixes" -eq 1 ] || fail "$command_line: $fixes fix lines instead of one"
    ! grep -qiE 'signal [0-9]+|segmentation|stack smashing|Sanitizer|free\(\)|malloc\(\)' err ||
        fail "$command_line: it crashed"
    expect_no_core
}

expect_no_core() {
    checks=$((checks + 1))
    [ -z "$(compgen -G 'core*')" ] || {
        fail "$command_line: left $(compgen -G 'core*')"
        rm -f core*
    }
}

expect_same() {
    checks=$((checks + 1))
    cmp "$1" "$2" >compared 2>&1 || fail "$3: $(cat compared)"
}

# expect_peak_below BYTES: what tool_peak_memory left in the file `peak`, beyond what the program takes to start (CUDA's
# libraries alone are 230 MB). Sanitizers hold freed memory back: not judged there.
expect_peak_below() {
    is_sanitized && return
    checks=$((checks + 1))
    local used
    "$build/tool_peak_memory" start "$program" --help >/dev/null
    used=$(($(cat peak) - $(cat start)))
    [ "$used" -lt "$1" ] || fail "$used bytes of memory at the peak, expected less than $1"
}

# ---- safetensors files, as far as tests need them ----

# save_bytes FILE HEADER DATA_BYTES: a file with that header and that many zero bytes of data.
save_bytes() {
    local length=${#2} shift_bits
    for shift_bits in 0 8 16 24 32 40 48 56; do
        # shellcheck disable=SC2059 # the format is the byte
        printf "\\x$(printf %02x $(((length >> shift_bits) & 255)))"
    done >"$1"
    printf %s "$2" >>"$1"
    head -c "$3" /dev/zero >>"$1"
}

# tensor_bytes FILE NAME: the tensor's raw bytes on stdout; fails if there is none.
tensor_bytes() {
    local length entry begin end
    length=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    entry=$(head -c $((8 + length)) "$1" | tail -c "$length" | grep -oE "\"$2\": *\{[^}]*\}") || return 1
    begin=$(sed -E 's/.*"data_offsets": *\[ *([0-9]+) *, *([0-9]+) *\].*/\1/' <<<"$entry")
    end=$(sed -E 's/.*"data_offsets": *\[ *([0-9]+) *, *([0-9]+) *\].*/\2/' <<<"$entry")
    # In this order neither end of the pipe leaves early, which pipefail would take for a failure.
    head -c $((8 + length + end)) "$1" | tail -c $((end - begin))
}

tensor_names() {
    local length
    length=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    head -c $((8 + length)) "$1" | tail -c "$length" | grep -oE '"[^"]+": *\{ *"(dtype|shape|data_offsets)"' | cut -d'"' -f2
}

# expect_tensor_same FILE OTHER NAME: bit for bit.
expect_tensor_same() {
    if ! tensor_bytes "$1" "$3" >tensor.a || ! tensor_bytes "$2" "$3" >tensor.b; then
        checks=$((checks + 1))
        fail "$1 or $2 has no tensor $3"
        return
    fi
    checks=$((checks + 1))
    [ -s tensor.a ] || fail "$3 of $1 is empty"
    expect_same tensor.a tensor.b "$3 of $1 and $2"
}

# expect_tensor_near FILE OTHER NAME BOUND: f32, max |difference| / max |other| <= bound.
expect_tensor_near() {
    local verdict
    checks=$((checks + 1))
    verdict=$(paste <(tensor_bytes "$1" "$3" | od -An -v -w4 -tf4) <(tensor_bytes "$2" "$3" | od -An -v -w4 -tf4) |
        awk -v bound="$4" '
            NF != 2 || $1 ~ /nan|inf/ || $2 ~ /nan|inf/ { print "value " NR ": " $0; odd = 1; exit }
            { d = $1 - $2; if (d < 0) d = -d; if (d > worst) worst = d; s = $2 < 0 ? -$2 : $2; if (s > size) size = s }
            END { if (odd) exit; if (NR == 0 || size == 0) print "nothing to compare"
                  else if (worst > bound * size) print "error " worst / size " > " bound }')
    [ -z "$verdict" ] || fail "$3 of $1 and $2: $verdict"
}
