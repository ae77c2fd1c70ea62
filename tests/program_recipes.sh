#!/usr/bin/env bash
# dp2ep under recipes on the CPU: the same bits on every EP layout as on one rank, forward and backward; what it refuses.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# 12 tokens, 5 experts; widths that every recipe takes.
layer=(--device cpu --samples 0 --seed 11 --experts 5 --top_k 2 --dim 128 --hidden 128 --score softmax --shared_hidden 16)

save() { # save NAME RANKS TOKENS RECIPE WORDS...: one checked run into NAME.safetensors
    local name=$1 ranks=$2 tokens=$3 recipe=$4
    shift 4
    expect_good "$ranks" dp2ep "${layer[@]}" --tokens "$tokens" --recipe "$recipe" "$@" --save "$name.safetensors" --force
    expect_text out 'bit for bit +equal'
    expect_text out "quality of ${recipe%%:*} +within bound"
}

# Under sanitizers a run takes seconds: one recipe of each sort; the kernels' tests have all.
trained=(fp8_row fp8_block mxfp8:mode=floor)
spanning=(fp8_tensor nvfp4 int8_dynamic int4_tile)
others=(fp8_weight_only int8_weight_only int4_weight_only int8_int4 mxfp4 nvfp4_one_level nvfp4_weight_only fp8_int4
    int4_int4 deepseek_block FP8_DYNAMIC FP8_BLOCK W8A8 W8A16 W4A16 W4A16_ASYM W4A8 W4AFP8 NVFP4A16 MXFP4 MXFP8)
if is_sanitized; then trained=(mxfp8:mode=floor) spanning=(nvfp4) others=(int8_dynamic int4_tile); fi

for recipe in "${trained[@]}"; do
    save one 0 12 "$recipe"
    save ep3 3 5,0,7 "$recipe" --mesh ep=3
    save dp2ep2 4 3 "$recipe" --mesh dp=2,ep=2
    for tensor in y expert_of_token grad.x; do
        expect_tensor_same ep3.safetensors one.safetensors $tensor
        expect_tensor_same dp2ep2.safetensors one.safetensors $tensor
    done
    for tensor in grad.w1 grad.w2 grad.w3; do expect_tensor_same ep3.safetensors one.safetensors $tensor; done
done
save none 0 12 mxfp8 --score_before_experts --dtype f32
if cmp -s <(tensor_bytes none.safetensors y) <(tensor_bytes one.safetensors y); then fail "two recipes gave the same y"; fi

# Forward: one scale for all ranks' activations (fp8_tensor, nvfp4) and one of every form of product.
for recipe in "${spanning[@]}"; do
    save one 0 12 "$recipe" --forward_only
    save dp2ep2 4 3 "$recipe" --forward_only --mesh dp=2,ep=2
    expect_tensor_same dp2ep2.safetensors one.safetensors y
done
for recipe in "${others[@]}"; do
    save one 0 12 "$recipe" --forward_only
done

expect_error 2 'recipe nvfp4 has no backward' 0 dp2ep "${layer[@]}" --recipe nvfp4
expect_error 2 "there is no recipe 'fp8_rwo'" 2 dp2ep "${layer[@]}" --recipe fp8_rwo
expect_text err 'did you mean fp8_row'
expect_error 65 'recipe fp8_block, experts of 96 x 128: dimension .* is 192, which 128 does not divide' 0 \
    dp2ep --device cpu --dim 128 --hidden 96 --recipe fp8_block
expect_good 0 dp2ep "${layer[@]}" --recipe none
expect_good 0 dp2ep --device cpu --samples 2 --recipe fp8_row --load "$golden/moe_layers/qwen-like.safetensors"

finish
