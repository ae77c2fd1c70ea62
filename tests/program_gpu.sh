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

# Two ranks, one visible GPU.
export CUDA_VISIBLE_DEVICES=0
expect_error 69 'GPU' 2 dp2ep --device cuda --samples 0
unset CUDA_VISIBLE_DEVICES
expect_error 2 'transport' 2 dp2ep --device cpu --transport window --samples 0
finish
