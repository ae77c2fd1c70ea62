#!/usr/bin/env bash
# parallelisms on two GPUs: the GPUs against one GPU that adds in the same order, and a plan of each kind.
# labels: gpu2
# timeout: 600
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

on_gpu=(parallelisms --device cuda --samples 0 --dim 64 --hidden 128 --vocab 512 --tokens 64)
exactly() {
    expect_good 2 "${on_gpu[@]}" "$@"
    expect_text out '^parameters after step .* equal +good'
}
within() {
    expect_good 2 "${on_gpu[@]}" "$@"
    expect_text out '^parameters after step .* within bound +good'
}

for dtype in f32 bf16; do
    exactly --mode fsdp --dtype $dtype
    exactly --mode fsdp --dtype $dtype --reshard no --accumulate 2
    exactly --mode fsdp --dtype $dtype --reshard 2 --reduce_dtype bf16
    exactly --mode ddp --dtype $dtype
    exactly --mode ep --dtype $dtype
    within --mode tp --dtype $dtype
    within --mode sp --dtype $dtype
done
exactly --mode fsdp --tokens 64,0
within --mode tp --tokens 63 --vocab 509
within --mesh tp=2 --experts 6
within --mesh tp=2 --experts 6 --experts_on tp
within --mesh tp=2 --experts 6 --experts_on tp --mode sp
expect_good 2 parallelisms --device cuda --linear
expect_text out '^weight gradient +equal +good'
expect_good 2 "${on_gpu[@]}" --mode fsdp --layers 4 --samples 5
expect_text out '^communication of FSDP hidden behind compute: '
expect_error 1 'is not what one rank does' 2 "${on_gpu[@]}" --mode fsdp --plant unwritten_rows
expect_text out 'not finite'
finish
