#!/usr/bin/env bash
# dp2ep on two GPUs: every golden layer, three of them over every transport and mesh, the GPU against the CPU, the guards.
# labels: gpu2
# timeout: 900
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

for layer in "$golden"/moe_layers/*.safetensors; do
    expect_good 2 dp2ep --device cuda --load "$layer" --mesh ep=2 --samples 0
    case $(basename "$layer" .safetensors) in
    before-shared | bf16-shared-gate | top8-softmax-bias) ;;
    *) continue ;;
    esac
    for transport in window ipc nccl; do
        expect_good 2 dp2ep --device cuda --load "$layer" --mesh ep=2 --transport $transport --samples 0
    done
    expect_good 2 dp2ep --device cuda --load "$layer" --mesh dp=2 --samples 0
    expect_good 2 dp2ep --device cuda --load "$layer" --mesh ep=2 --no-exact --samples 0
    expect_good 1 dp2ep --device cuda --load "$layer" --samples 0
done

words=(dp2ep --samples 0 --experts 12 --top_k 3 --dim 72 --hidden 56 --dtype f32 --seed 4)
expect_good 2 "${words[@]}" --tokens 29 --device cuda --save gpu.safetensors
expect_good 2 "${words[@]}" --tokens 29 --device cpu --save cpu.safetensors
expect_good 1 "${words[@]}" --device cuda --tokens 58 --save one.safetensors
for name in y grad.x grad.router grad.w1 grad.w2 grad.w3; do
    expect_tensor_near gpu.safetensors cpu.safetensors "$name" 1e-5
done
for name in y grad.x expert_of_token; do expect_tensor_same gpu.safetensors one.safetensors "$name"; done

# Recipes: every layout has the bits of one rank, forward and backward, one scale over all ranks among them.
layer=(dp2ep --device cuda --samples 0 --seed 11 --experts 5 --top_k 2 --dim 128 --hidden 128 --score softmax)
for recipe in fp8_row fp8_block mxfp8; do
    expect_good 1 "${layer[@]}" --tokens 41 --recipe $recipe --save one.safetensors --force
    expect_good 2 "${layer[@]}" --tokens 7,34 --recipe $recipe --mesh ep=2 --save two.safetensors --force
    expect_text out 'bit for bit +equal'
    for name in y grad.x grad.w1 grad.w2 grad.w3; do expect_tensor_same two.safetensors one.safetensors $name; done
    expect_good 2 "${layer[@]}" --tokens 20 --recipe $recipe --mesh dp=2
    expect_good 2 "${layer[@]}" --tokens 20 --recipe $recipe --mesh ep=2 --no-exact
done
for recipe in fp8_tensor nvfp4; do
    for mesh in ep=2 dp=2; do
        expect_good 2 "${layer[@]}" --tokens 20 --recipe $recipe --mesh $mesh --forward_only
        expect_text out 'bit for bit +equal'
    done
done

# Two ranks, one visible GPU.
export CUDA_VISIBLE_DEVICES=0
expect_error 69 'GPU' 2 dp2ep --device cuda --samples 0
unset CUDA_VISIBLE_DEVICES
expect_error 2 'transport' 2 dp2ep --device cpu --transport window --samples 0
finish
