#!/usr/bin/env bash
# Every layer that PyTorch computed, on 1, 2, 3, 4 and 8 ranks and over other meshes; and a spoilt one must be noticed.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

counts=(1 2 3 4 8)
if is_sanitized; then counts=(1 3 8); fi # sanitizers look at memory, the other build at all numbers
for layer in "$golden"/moe_layers/*.safetensors; do
    for ranks in "${counts[@]}"; do
        expect_good "$ranks" dp2ep --samples 0 --mesh "ep=$ranks" --load "$layer" --json
        # Every expected tensor is among what was compared.
        for name in $(tensor_names "$layer" | grep '^expect\.'); do expect_text out "${name#expect.}"; done
    done
    expect_good 4 dp2ep --samples 0 --mesh dp=2,ep=2 --load "$layer"
    expect_good 2 dp2ep --samples 0 --mesh dp=2 --load "$layer"
    expect_good 2 dp2ep --samples 0 --no-exact --load "$layer"
done

# The seed's toy takes the experts that the seed's own printout shows.
toy=$golden/moe_layers/toy-seed6.safetensors
expect_good 2 dp2ep --samples 0 --load "$toy" --save toy-out.safetensors
choice=$(tensor_bytes toy-out.safetensors expert_of_token | od -An -v -td8 | tr -s ' \n' ' ')
checks=$((checks + 1))
[ "$choice" = " 2 2 3 0 3 3 2 3 " ] || fail "the toy's choices are '$choice'"

# A comparison that cannot fail is none: one changed value in each expected tensor must give 1 and its name.
layer=$golden/moe_layers/qwen-like.safetensors
for name in $(tensor_names "$layer" | grep '^expect\.'); do
    cp "$layer" spoilt.safetensors
    length=$(od -An -tu8 -N8 "$layer" | tr -d ' ')
    begin=$(head -c $((8 + length)) "$layer" | grep -aoE "\"$name\": *\{[^}]*\}" | sed -E 's/.*offsets": *\[ *([0-9]+).*/\1/')
    # 2.5 as a float64, or an expert number that is none.
    printf '\x00\x00\x00\x00\x00\x00\x04\x40' |
        dd of=spoilt.safetensors bs=1 seek=$((8 + length + begin)) conv=notrunc status=none
    run 2 dp2ep --samples 0 --load spoilt.safetensors
    expect_status 1
    checks=$((checks + 1))
    grep -q -- "${name#expect.}" out err || fail "$name was changed, and nothing names it"
done

finish
