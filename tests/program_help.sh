#!/usr/bin/env bash
# Help, version and typos: what a user meets who types the program's name, a wrong name or a wrong option.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

expect_good 0 --help
mapfile -t commands < <(find "$source_folder/experiments" -maxdepth 1 -name '*.c' ! -name main.c -printf '%f\n' |
    sed 's/\.c$//' | sort)
for name in "${commands[@]}"; do expect_text out "\b$name\b"; done

for name in "${commands[@]}"; do
    expect_good 0 "$name" --help
    expect_text out "$name"
done

# Every option of the layer is in its help, with its range or choices and its default.
expect_good 0 dp2ep --help
for option in mesh experts_on experts top_k dim hidden tokens score score_before_experts normalise_top_k route_scale \
    expert_bias shared_hidden shared_gate dtype device routing align save exact check transport seed forward_only samples \
    max_noise timeout output json load force watchdog_s; do
    case $option in
    output) expect_text out '(^|[ ,])-o\b' ;;
    *) expect_text out "--(\[no-\])?$option\b" ;;
    esac
done
expect_text out 'sigmoid\|softmax|softmax\|sigmoid'

expect_good 0 --version
expect_text out '^meshwork [0-9]+\.[0-9]+'
expect_text out 'HDF5'
expect_text out 'MPI'

expect_good 0 doctor
expect_text out 'mpi|MPI'

# The nearest name is offered; a name that is near to nothing gets none, but the list's place.
expect_error 2 "'?dp2pe'?" 0 dp2pe
expect_text err 'dp2ep'
expect_error 2 'resluts' 0 resluts show x.h5
expect_text err 'results'
expect_error 2 'zzzzzzzz' 0 zzzzzzzz
expect_error 2 'expert' 2 dp2ep --expert 4
expect_text err '--experts'
expect_error 2 'top-k|topk' 2 dp2ep --topk 2
expect_text err '--top_k'
expect_error 2 'shwo' 0 results shwo x.h5
expect_text err 'show'

# An option for tests alone is told to nobody.
expect_good 0 dp2ep --help
checks=$((checks + 1))
! grep -q -e '--fault' out || fail "--fault is in --help"
expect_error 2 'falt' 2 dp2ep --falt 4
checks=$((checks + 1))
! grep -q -e '--fault' err || fail "--fault is suggested"
expect_error 2 'fault' 2 dp2ep --fault often
expect_error 2 'watchdog_s' 2 dp2ep --watchdog_s -1

# No command at all: usage on stderr, not a table of results.
run 0
expect_status 2
checks=$((checks + 1))
[ ! -s out ] || fail "without a command something is on stdout"

finish
