#!/usr/bin/env bash
# quantize, convert and inspect on a GPU: the same folders as on the CPU, byte for byte, from a small model with experts and
# from matrices that are cast in pieces, whose amax is measured first.
# labels: gpu
# timeout: 600
# $1: the build folder.
if [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

model=$golden/checkpoints/source

# both RANKS VERB WORD...: the same folder from both devices; the GPU's stays as `cuda`.
both() {
    local ranks=$1 verb=$2
    shift 2
    rm -rf cpu cuda
    expect_good 0 "$verb" --device cpu --out cpu "$@"
    expect_good "$ranks" "$verb" --device cuda --out cuda "$@"
    checks=$((checks + 1))
    diff -r cpu cuda >compared 2>&1 || fail "$command_line: not what the CPU makes: $(head -n 3 compared)"
}

for recipe in fp8_row nvfp4 int4_weight_only mxfp8 fp8_tensor mxfp4 int8_weight_only int4_tile NVFP4A16 W4A16 FP8_DYNAMIC; do
    both 0 quantize --model "$model" --recipe "$recipe"
done
both 2 quantize --model "$model" --recipe nvfp4 --max_shard 100KB
mv cuda quantised
both 0 convert --model quantised --layout compressed-tensors --share_scales
expect_good 0 inspect quantised --against "$model" --device cuda
expect_text out '^what the recipes promise'

# Matrices of 17 MB, positive and below 2: three units each; q and k share a second scale in NVFP4A16.
rows=4112 columns=2048
bytes=$((rows * columns * 2))
mkdir large
cp "$model/config.json" large
header='{' begin=0
for name in mlp.down_proj self_attn.k_proj self_attn.q_proj; do
    header+="\"model.layers.0.$name.weight\": {\"dtype\": \"BF16\", \"shape\": [$rows, $columns], "
    header+="\"data_offsets\": [$begin, $((begin + bytes))]}, "
    begin=$((begin + bytes))
done
save_bytes large/model.safetensors "${header%, }}" 0
head -c "$begin" /dev/urandom | LC_ALL=C tr '\100-\377' '\000-\077' >>large/model.safetensors
for recipe in fp8_row nvfp4 fp8_tensor mxfp8 int4_weight_only NVFP4A16; do
    both 0 quantize --model large --recipe "$recipe"
done
expect_good 0 quantize --model large --recipe nvfp4 --device cuda --dry_run
expect_text out 'on cuda in each of 1 ranks'
# Too little for a GPU's start.
expect_good 0 quantize --model large --recipe nvfp4 --device auto --dry_run
expect_text out 'on cpu in each of 1 ranks'
finish
