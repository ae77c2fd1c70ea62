#!/usr/bin/env bash
# `meshwork redistribute` on two GPUs: every type and kind of step at sizes of many tiles, bit for bit; how long large
# ones take; and what does not fit.
# labels: gpu2
# timeout: 900
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "$0")/program_lib.sh"

move() { # SHAPE FROM TO DTYPE [WORD...]
    expect_good 2 redistribute --device cuda --samples 1 --mesh x=2 --shape "$1" --from "$2" --to "$3" --dtype "$4" \
        "${@:5}"
    expect_text out 'check: equal to gather, combine and slice, bit for bit'
    expect_text out 'time on cuda: '
}

# Starting NCCL takes seconds, so every type has one move of each sort; test_parallel_redistribute_gpu has the rest.
for dtype in f32 bf16 f16 f64 i64 i32 i16 i8 u64 u32 u16 u8 bool f8_e4m3 f8_e5m2 f8_e8m0 f8_e4m3fnuz f8_e5m2fnuz c64; do
    move 1009,331 S0 S1 "$dtype"
done
for dtype in f32 bf16 f16 f64 i64 i32 i16 i8 u64 u32 u16 u8; do move 1009,331 P S1 "$dtype"; done
move 331,1009 'P(avg)' S0 f16
move 331,1009 'P(max)' R bf16
move 331,1009 P R bf16
move 331,1009 S1 R f32
move 1009,331 S1 'P(product)' f32
move 4099,515 S0 S0x2 bf16
move 4099,515 S0x3 S1 f32
move 515,4099 R S1 bf16
move 515,4099 R P bf16
move 7,3,1021,5 S2 S3 u8

# Nothing to move, less than a row each.
move 0,4 S0 S1 f32
move 1,3 S0 R bf16
move 1,3 P S0 f32

# How long large ones take, for the log.
for change in 'S0 R' 'S1 R' 'S0 S1' 'P R' 'P S0' 'P S1' 'R S1'; do
    read -r from to <<<"$change"
    expect_good 2 redistribute --device cuda --no-check --samples 30 --mesh x=2 --shape 8192,8192 --dtype bf16 \
        --from "$from" --to "$to"
    echo "$from -> $to, 128 MiB of bf16: $(grep -E '^wire|^time' out | tr '\n' ' ')"
done

expect_error 69 "--shape '40000000000,100': a rank needs [0-9]+ bytes" 2 redistribute --device cuda \
    --shape 40000000000,100 --mesh x=2
export CUDA_VISIBLE_DEVICES=0
expect_error 69 'GPU' 2 redistribute --device cuda
finish
