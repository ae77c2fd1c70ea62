#!/usr/bin/env bash
# `meshwork redistribute` on the CPU: a few moves that must hold bit for bit, plans of tensors that no memory holds, and
# bad requests that end in one message naming the option.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "$0")/program_lib.sh"

move() { # RANKS SHAPE MESH FROM TO [WORD...]
    expect_good "$1" redistribute --device cpu --samples 1 --shape "$2" --mesh "$3" --from "$4" --to "$5" "${@:6}"
    expect_text out 'check: equal to gather, combine and slice, bit for bit'
}
move 8 61,7 a=2,b=4 S0,P R,S1
expect_text out 'reduce-scatter +b +P\(sum\) -> S1 +5124 '
expect_text out 'wire bytes of all ranks: 6832 planned, 6832 sent'
move 4 13,5 dp=2,tp=2 S0x2,S0 S1,P --dtype bf16
move 4 13,5 dp=2,tp=2 S0x2,S0 S0x2,R
expect_text out 'all-gather +tp +S0 -> R '
move 3 1,4 x=3 S0 'P(product)' --dtype f16
move 1 5 alone=1 P R --dtype f64

# Nothing to move, less than a row each, sizes that nothing divides.
move 2 0,4 x=2 P S1 --dtype i8
move 4 3,0,5 x=2,y=2 S0,S2 R,S1
move 8 1,3 x=8 S0 R
move 8 1,3 x=8 P S0 --dtype bf16
move 8 127,31 x=2,y=4 S0x4,S0 S1,S0 --dtype u8
move 3 1009 x=3 'P(max)' S0

expect_good 2 redistribute --device cpu --mesh a=2 --from P --to R --json --samples 0
expect_text out '"wire_bytes_planned": 3416'
expect_text out '"elements_wrong": 0'

# 2^32 + 1 rows of 5 on 2 x 2: rows of 2^31 + 1 and 2^31 along a; sums along b are of 3 and 2 columns.
expect_good 4 redistribute --no-move --shape 4294967297,5 --mesh a=2,b=2 --from S0,P --to R,S1 --dtype bf16 --json
expect_text out '"wire_bytes": 42949672970,'
expect_text out '"wire_bytes_planned": 85899345940'
expect_text out '"wire_bytes_sent": null'
expect_error 69 "--shape '4000000000,4000000': a rank needs [0-9]+ bytes and has" 2 redistribute --device cpu \
    --shape 4000000000,4000000

bad() { # REGEX RANKS WORD..., 0 ranks: without mpirun, which takes longer than the rest
    expect_error 2 "$1" "$2" redistribute "${@:3}"
}
bad "--from: 'S0' has 1 placement, but the mesh has 2 axes" 4 --mesh a=2,b=2 --from S0 --to R,R
bad "--from, axis b: 's0' is no placement" 0 --mesh a=1,b=1 --from R,s0 --to R,R
bad "--from, axis a: 'P\(summ\)': there is no operation 'summ'" 0 --mesh a=1 --from 'P(summ)' --to R
bad "--to, axis a: '' is no placement" 0 --mesh a=1 --to ''
bad "--to, axis a: 'S8' shards dimension 8" 0 --mesh a=1 --to S8
bad "--to, axis a: 'S0x0' is no shard" 0 --mesh a=1 --to S0x0
bad "--from 'S2': S2 on axis a: .* has no dimension 2" 0 --mesh a=1 --from S2 --to R
bad "--to 'S2': S2 on axis a: .* has no dimension 2" 0 --mesh a=1 --from R --to S2
bad "--from 'P\(avg\)': .*average of i32" 2 --mesh a=2 --from 'P(avg)' --to R --dtype i32
bad "--to 'P': .*no arithmetic for c64" 0 --mesh a=1 --to P --dtype c64
bad "--mesh .2a=1.: .*is no name for an axis" 0 --mesh 2a=1 --from S0 --to R
bad "--mesh .a=4.: .*multiply to 4, but the job has 2 ranks" 2 --mesh a=4 --from S0 --to R
bad "--mesh .a=0.: .*extent 0 of axis 'a'" 0 --mesh a=0
bad "--mesh .a=1,a=1.: .*'a' is there twice" 0 --mesh a=1,a=1
bad "--mesh .a=1,b=1,c=1,d=1,e=1.: .*more than 4 axes" 0 --mesh a=1,b=1,c=1,d=1,e=1
bad "--shape '4,-1': dimension 1 is no size" 0 --shape 4,-1
bad "--shape '4,,5': dimension 1 is no size" 0 --shape 4,,5
bad "--shape '4x5': dimension 0 is no size" 0 --shape 4x5
bad "--shape '': dimension 0 is no size" 0 --shape ''
bad "--shape .* dimension 0 is no size" 0 --shape 99999999999999999999
bad "--shape .* has more than 8 dimensions" 0 --shape 1,2,3,4,5,6,7,8,9
bad "--shape '100000000000,100000000000': .* passes 2\^63 bits" 0 --shape 100000000000,100000000000
bad "--dtype: there is no type 'fp32'" 0 --dtype fp32
bad "--dtype f4: its elements share bytes" 0 --dtype f4
bad "--device cannot be 'gpu'" 0 --device gpu
bad "--samples cannot be '-1'" 0 --samples -1
bad "there is no option --shap" 0 --shap 4
if ! command -v nvidia-smi >/dev/null; then expect_error 69 '--device cuda' 2 redistribute --device cuda; fi

finish
