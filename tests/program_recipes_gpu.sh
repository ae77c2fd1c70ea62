#!/usr/bin/env bash
# gemms, ao and dp2ep under recipes on one GPU: against double precision, cuBLASLt, the CPU; captured steps.
# $1: the build folder.
# labels: gpu
# timeout: 600
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

expect_good 0 recipes
recipes=$(($(grep -c '^[^ ]' out) - 1)) # but for the heading

# Grouped, dense, and few rows for many weights.
for shape in 3,200,128,256 256,512,1024 8,16,1408,2048; do
    expect_good 0 gemms --device cuda --shape $shape --samples 3 -o gemms.h5 --force
    checks=$((checks + 1))
    [ "$(grep -cE ' within bound ' out)" -ge "$recipes" ] || fail "$command_line: not all $recipes recipes within their bounds"
    case $shape in
    256,*) for name in fp8_row fp8_tensor fp8_block; do expect_text out "^$name, cuBLASLt bare +within bound .*[0-9] [mun]?s "; done ;;
    esac
done
expect_good 0 results show gemms.h5
expect_text out 'SQNR'
expect_good 0 gemms --device cuda --shape 2,5,16,64 --recipe mxfp8,int8_dynamic,none --samples 0 --dtype f32
expect_good 0 gemms --device cuda --shape 0,16,64 --recipe fp8_row,none --samples 0

expect_good 0 ao --device cuda --recipe int4_weight_only:group=32 --samples 3 -o ao.h5
expect_text out '^[1-9][0-9]* of [0-9]+ modules quantised'
expect_good 0 ao --device cuda --autoquant --min_sqnr 20 --match 're:model.layers.0.*(k_proj|0.down_proj)' --samples 3
expect_text out ' chosen$'

# Layers: f32, so that the CPU's other products have the GPU's bits but for a few exponentials.
layer=(dp2ep --samples 0 --seed 11 --experts 5 --top_k 2 --dim 128 --hidden 128 --score softmax --shared_hidden 16 --tokens 60)
for recipe in fp8_row fp8_block mxfp8:mode=floor; do
    expect_good 1 "${layer[@]}" --dtype f32 --recipe $recipe --device cpu --save cpu.safetensors --force
    expect_good 1 "${layer[@]}" --dtype f32 --recipe $recipe --device cuda --save cuda.safetensors --force
    expect_text out '1 rank, bit for bit +equal'
    expect_text out 'graph replayed with other routing, bit for bit +equal'
    expect_tensor_same cuda.safetensors cpu.safetensors expert_of_token
    for tensor in y grad.x grad.w1 grad.w2 grad.w3; do
        expect_tensor_near cuda.safetensors cpu.safetensors $tensor 1e-2
    done
    for exact in exact no-exact; do # bf16: the other takes the tensor cores
        expect_good 1 "${layer[@]}" --recipe $recipe --device cuda --$exact
        expect_text out "quality of ${recipe%%:*} +within bound"
    done
    expect_good 1 "${layer[@]}" --recipe $recipe --device cuda --score_before_experts --align 1
done
for recipe in fp8_tensor nvfp4 int8_dynamic int4_weight_only int4_tile mxfp4 fp8_int4 W4A8 fp8_weight_only; do
    expect_good 1 "${layer[@]}" --recipe $recipe --device cuda --forward_only
    expect_good 1 "${layer[@]}" --recipe $recipe --device cuda --forward_only --no-exact
    expect_text out "quality of $recipe +within bound"
done
expect_error 2 'recipe nvfp4 has no backward' 1 "${layer[@]}" --recipe nvfp4 --device cuda
finish
