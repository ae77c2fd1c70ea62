#!/usr/bin/env bash
# Plans, explanations, the Linear, layer files, result files of `meshwork parallelisms`.
# $1: the build folder.
# builds: release
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# Plans: the default written down, a part of it, sequence parallelism by plan.
cat >whole.plan <<'PLAN'
# the default of --mode sp
embed_tokens        vocab_embedding
layers.*.mlp.up     colwise
layers.*.mlp.gate   colwise
layers.*.mlp.down   rowwise
*norm*              sequence   # every norm, or none
lm_head             vocab_head
PLAN
echo 'layers.*.mlp.*_proj.weight colwise
layers.*.mlp.down rowwise
layers.1.mlp.* replicate' >part.plan
echo 'lm_head vocab_head' >head.plan
for plan in whole part head; do
    expect_good 4 parallelisms --samples 0 --mesh dp=2,tp=2 --plan $plan.plan
    expect_text out '^parameters after step 2 .*good'
    expect_text out '^bytes and memory as explained +equal +good'
done
echo 'layers.*.mlp.experts.* expert
*norm* sequence' >experts.plan
expect_good 4 parallelisms --samples 0 --mesh ep=2,tp=2 --experts 6 --plan experts.plan
echo '*norm* sequence' >copies.plan # experts on every rank, tokens divided over tp
expect_good 4 parallelisms --samples 0 --mesh dp=2,tp=2 --experts 6 --plan copies.plan

bad_plan() { # bad_plan TEXT REGEX FIX: one line, its message
    printf '%s\n' "$1" >bad.plan
    expect_error 2 "$2" 2 parallelisms --mode tp --plan bad.plan
    expect_text err "fix: .*$3"
}
bad_plan 'layers.*.mlp.upp colwise' "bad.plan:1: no parameter matches 'layers.*.mlp.upp'" "did you mean 'layers.*.mlp.up'"
bad_plan 'lm_head colwize' "bad.plan:1: there is no style 'colwize'" "did you mean 'colwise'"
bad_plan '*norm* rowwise' 'bad.plan:1: rowwise divides dimension 1, and model.layers.0.* is \[32\]' 'takes replicate or sequence'
bad_plan 'mlp.down colwise' "no parameter matches 'mlp.down'" 'explain lists'
bad_plan 'layers.*.mlp.down colwise' 'colwise cannot be applied to model.layers.0.mlp.down_proj.weight' 'takes replicate or rowwise'
bad_plan 'layers.*.mlp.up colwise' 'mlp.gate_proj.weight is replicate and .*up_proj.weight is colwise' 'gate and up colwise'
bad_plan 'model.norm.weight sequence' 'layernorm.weight is replicate and model.norm.weight is sequence' 'every norm'
bad_plan 'colwise' 'bad.plan:1: 1 word, not two' 'pattern style'
expect_error 66 'plan' 2 parallelisms --mode tp --plan nowhere.plan

# Explanations need no ranks; 4096 of them and 48 layers take less than 2 s and 1 GB.
big=(--mesh dp=64,ep=8,tp=8 --experts_on 'ep*tp' --layers 48 --dim 4096 --hidden 1536 --experts 128 --top_k 8 --vocab 151936
    --tokens 4096 --dtype bf16)
expect_good 0 parallelisms --explain "${big[@]}"
expect_text out 'mesh of 4096 ranks'
expect_text out '^model.layers.0.mlp.experts.gate_up_proj +48 +128x3072x4096 +expert +dp: S1, ep\*tp: S0'
expect_text out '^model.embed_tokens.weight +1 +151936x4096 +vocab_embedding +dp\*ep: S0x8, tp: S0'
expect_text out '^all-gather experts +shards of experts +96 '
expect_text out '^dispatch and combine: [0-9]+ bytes at least, [0-9]+ with even routing, [0-9]+ at most'
checks=$((checks + 1))
"$build/tool_peak_memory" peak timeout 2 "$program" parallelisms --explain "${big[@]}" >out 2>err ||
    fail "--explain of 4096 ranks: not in 2 s"
expect_peak_below 1000000000
# By hand: a block saves two of 8192 x 4096 and one of 8192 x 28672 in bf16 and 8192 scales: 604012544 bytes. One rank's
# gradients are made where they stay, so that block 0's begin, behind the embedding's 4 x 32000 x 4096, where what it saves
# ends; the gradients outgrow what is saved. Eight ranks' fit into it: the head's begin where it begins.
race=(--layers 8 --dim 4096 --hidden 14336 --vocab 32000 --tokens 8192 --dtype bf16)
expect_good 0 parallelisms --explain --mesh dp=1 "${race[@]}"
expect_text out "^gradients' shards take the place of activations: 6685868032 bytes from byte 79724544 of a room of 6765592576"
expect_text out '^  gradients +0 '
expect_good 0 parallelisms --explain --mesh dp=8 "${race[@]}"
expect_text out "^gradients' shards take the place of activations: 835733504 bytes from byte 4061904896 of a room of 5490737152"
expect_good 0 parallelisms --explain --json --mesh dp=2,tp=2
expect_text out '"placement": "dp: S0x2, tp: S0"'
expect_error 2 'no axis' 0 parallelisms --explain --mesh foo=2

# The Linear of PyTorch's script: exact on 1, 2 and 4 ranks.
for ranks in 1 2 4; do
    expect_good "$ranks" parallelisms --linear
    expect_text out '^weight gradient +equal +good'
done
for ranks in 1 2 3; do
    expect_good "$ranks" parallelisms --linear --mode tp
    expect_text out '^weight gradient +equal +good'
    expect_text out '^input gradient .*good'
done
expect_error 2 'knows the modes fsdp and tp' 1 parallelisms --linear --mode ep

# Files of one MoE layer go to dp2ep, with what both commands share.
expect_good 4 parallelisms --load "$golden/moe_layers/qwen-like.safetensors" --mesh ep=2,tp=2 --samples 0 --save saved.safetensors
expect_text out '^expect.y +within bound +good'
expect_good 2 dp2ep --load "$golden/moe_layers/qwen-like.safetensors" --mesh ep=2 --samples 0 --save other.safetensors
expect_tensor_same saved.safetensors other.safetensors y
expect_error 2 'layers 3 with --load' 2 parallelisms --load "$golden/moe_layers/qwen-like.safetensors" --layers 3
expect_error 66 'nowhere' 2 parallelisms --load nowhere.safetensors
expect_error 2 'save .* without --load' 1 parallelisms --save x.safetensors

# Timed steps go into a result file.
expect_good 2 parallelisms --mode fsdp --samples 5 -o r.h5
run 0 results show r.h5
expect_status 0
expect_text out '^total '
expect_text out '^fsdp/gather '
expect_error 73 'r.h5' 2 parallelisms --mode fsdp -o r.h5

finish
