#!/usr/bin/env bash
# `meshwork redistribute`: a few moves that must hold bit for bit, and bad requests that end in one message.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "$0")/program_lib.sh"

move() { # RANKS SHAPE MESH FROM TO [WORD...]
    expect_good "$1" redistribute --samples 1 --shape "$2" --mesh "$3" --from "$4" --to "$5" "${@:6}"
    expect_text out 'check: equal to gather, combine and slice, bit for bit'
}
move 8 61,7 a=2,b=4 S0,P R,S1
expect_text out 'reduce-scatter +b +P\(sum\) -> S1 +5124 '
expect_text out 'wire bytes of all ranks: 6832 planned, 6832 sent'
move 4 13,5 dp=2,tp=2 S0x2,S0 S1,P --dtype bf16
move 3 1,4 x=3 S0 'P(product)' --dtype f16
move 2 0,4 x=2 P S1 --dtype i8
move 1 5 alone=1 P R --dtype f64

expect_good 2 redistribute --mesh a=2 --from P --to R --json --samples 0
expect_text out '"wire_bytes_planned": 3416'
expect_text out '"elements_wrong": 0'

bad() { # REGEX RANKS WORD...
    expect_error 2 "$1" "$2" redistribute "${@:3}"
}
bad "has 1 placement, but the mesh has 2 axes" 4 --mesh a=2,b=2 --from S0 --to R,R
bad "axis b: 's0' is no placement" 2 --mesh a=2,b=1 --from R,s0 --to R,R
bad "no operation 'summ'" 2 --mesh a=2 --from 'P(summ)' --to R
bad "has no dimension 2" 2 --mesh a=2 --from S2 --to R
bad "is no name for an axis" 2 --mesh 2a=2 --from S0 --to R
bad "multiply to 4, but the job has 2 ranks" 2 --mesh a=4 --from S0 --to R
bad "dimension 1 is no size" 1 --shape 4,-1
bad "dimension 0 is no size" 1 --shape 99999999999999999999
bad "passes 2\^63 bits" 1 --shape 100000000000,100000000000
bad "no type 'fp32'" 1 --dtype fp32
bad "elements share bytes" 1 --dtype f4
bad "average of i32" 2 --mesh a=2 --from 'P(avg)' --to R --dtype i32
expect_error 69 "no CUDA rows yet" 2 redistribute --device cuda

finish
