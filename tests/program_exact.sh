#!/usr/bin/env bash
# The same layer on every mesh: the same bits where the design promises them, within the bound elsewhere.
# $1: the build folder.
#
# y, expert_of_token and grad.x: the same on every mesh. Gradients of experts: the same on every ep at the same dp.
# Everything else (dense gradients are summed per rank's tokens first; other dp) within a bound.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

anywhere="y expert_of_token grad.x"
experts="grad.w1 grad.w2 grad.w3"
dense="grad.router grad.shared_w1 grad.shared_w2 grad.shared_w3 grad.shared_gate"
declare -A bound_of=([f32]=1e-5 [bf16]=2e-2)

# save NAME RANKS TOKENS WORDS...: one run into NAME.safetensors; TOKENS as --tokens wants them.
save() {
    local name=$1 ranks=$2 tokens=$3
    shift 3
    [[ " $* " == *" --seed "* ]] || set -- --seed 11 "$@"
    expect_good "$ranks" dp2ep --samples 0 --tokens "$tokens" "${layer[@]}" "$@" --save "$name.safetensors" --force
}

compare() { # compare NAME OTHER TENSORS...: bit for bit
    local name=$1.safetensors other=$2.safetensors tensor
    shift 2
    for tensor in "$@"; do expect_tensor_same "$name" "$other" "$tensor"; done
}

for dtype in f32 bf16; do
    near=${bound_of[$dtype]}
    layer=(--dtype "$dtype" --experts 7 --top_k 3 --dim 24 --hidden 20 --score softmax --normalise_top_k
        --expert_bias --shared_hidden 12 --shared_gate)

    # 12 tokens in all, cut evenly.
    save one 1 12
    for ranks in 2 3 4; do save "ep$ranks" "$ranks" $((12 / ranks)) --mesh "ep=$ranks"; done
    save dp2ep2 4 3 --mesh dp=2,ep=2
    save dp2ep1 2 6 --mesh dp=2,ep=1
    save dp4 4 3 --mesh dp=4
    save folded 4 3 --mesh dp=2,ep=2 --experts_on 'dp*ep'
    # The same 12 tokens cut unevenly, with an idle rank.
    save uneven 4 5,0,6,1 --mesh ep=4

    # shellcheck disable=SC2086 # lists of names
    {
        for name in ep2 ep3 ep4 uneven folded; do compare $name one $anywhere $experts; done
        for name in dp2ep2 dp2ep1 dp4; do compare $name one $anywhere; done
        compare dp2ep2 dp2ep1 $experts
        for name in ep2 ep3 ep4 uneven dp2ep2 dp2ep1 dp4 folded; do
            for tensor in $dense; do expect_tensor_near $name.safetensors one.safetensors $tensor $near; done
        done
        for name in dp2ep2 dp4; do
            for tensor in $experts; do expect_tensor_near $name.safetensors one.safetensors $tensor $near; done
        done
    }

    # Run again: the same file, byte for byte, and another seed another file.
    save again 2 6 --mesh ep=2
    expect_same ep2.safetensors again.safetensors "the same run twice"
    save other 2 6 --mesh ep=2 --seed 12
    checks=$((checks + 1))
    ! cmp -s ep2.safetensors other.safetensors || fail "two seeds give the same file"

    # Summing per rank first changes bits, and stays near.
    save fast 4 3 --mesh ep=4 --no-exact
    for tensor in y grad.x; do expect_tensor_near fast.safetensors one.safetensors $tensor "$near"; done
    compare fast one expert_of_token
done

finish
