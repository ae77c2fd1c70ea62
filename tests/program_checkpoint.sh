#!/usr/bin/env bash
# quantize, convert and inspect as users call them: what they print, exit codes, folders that appear complete or not at all,
# kill -9 at random moments with --resume, a full disk, hostile folders.
# timeout: 600
# $1: the build folder. KILLS (environment): how often to kill, 3 unless told; program_checkpoint_slow.sh asks for more.
# In memory where there is room: hundreds of files are synced here, and disks are not what is tested.
if [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

model=$golden/checkpoints/source
experts='re:.*experts\.[0-9]+\.(gate|up|down)_proj'
moments=${KILLS:-3}

# same_folder A B: the same files with the same bytes.
same_folder() {
    checks=$((checks + 1))
    diff -rq "$1" "$2" >compared 2>&1 || fail "$command_line: $1 and $2: $(cat compared)"
}
nothing_left() {
    checks=$((checks + 1))
    [ ! -e "$1" ] && [ ! -e "$1.partial" ] || fail "$command_line: left $(ls -d "$1"*)"
}

# ---- the seed's workflow, on one rank and on three ----
expect_good 0 quantize --model "$model" --out a --recipe nvfp4 --match "$experts"
expect_text out '26 tensors, 9 quantised'
expect_good 3 quantize --model "$model" --out b --recipe nvfp4 --match "$experts" --max_shard 100KB
expect_good 2 quantize --model "$model" --out c --recipe nvfp4 --match "$experts"
same_folder a c
[ -e b/model.safetensors.index.json ] || fail "several files without an index"
checks=$((checks + 1))
cmp -s a/generation_config.json "$model/generation_config.json" || fail "generation_config.json was not carried over"
expect_good 0 inspect a --against "$model"
expect_text out '^what the recipes promise'
expect_good 0 inspect b --against "$model"
expect_good 0 inspect a --tensor 're:.*experts\.1\.up_proj.*' --json
expect_text out '"recipe": ?"nvfp4"'
expect_good 0 convert --model a --out d --layout compressed-tensors
expect_text err 'note: lossless'
expect_text err 'second scale'
expect_good 0 convert --model a --out e --layout compressed-tensors --share_scales
expect_good 0 convert --model d --out f --layout torchao
checks=$((checks + 1))
cmp -s a/model.safetensors f/model.safetensors || fail "there and back is not the same file"
# The manifest's digests are those that sha256sum finds.
checks=$((checks + 1))
wanted=$(tr -d ' \n' <a/manifest.json | grep -oE '"model.safetensors":\{[^}]*\}' | grep -oE '[0-9a-f]{64}')
[ "$wanted" = "$(sha256sum <a/model.safetensors | cut -d' ' -f1)" ] || fail "manifest.json has another SHA-256"

expect_good 4 quantize --model "$model" --out a4 --recipe nvfp4 --match "$experts"
same_folder a a4

# --dry_run says the size that comes out, and what its time assumes.
expect_good 0 quantize --model "$model" --recipe fp8_row --layout compressed-tensors --dry_run --json
said=$(grep -oE '"bytes": ?[0-9]+, ?"source_bytes"' out | tr -dc 0-9)
expect_text out '"limit": "[a-zA-Z -]+[0-9]*", "disk_bytes_per_s_assumed": [0-9.e+]+, "cast_bytes_per_s": [1-9]'
expect_good 2 quantize --model "$model" --recipe fp8_row --dry_run
expect_text out 'reading and writing at .* is assumed; casts at .* measured here times [0-9]+ on cpu in each of 2 ranks; SHA-256 at'
expect_good 0 quantize --model "$model" --out g --recipe fp8_row --layout compressed-tensors
checks=$((checks + 1))
[ "$said" -eq "$(stat -c %s g/model.safetensors)" ] || fail "--dry_run said $said bytes"

# ---- memory: that of the rows at hand, whatever the model ----
# Not under sanitizers, whose own memory is larger and which take minutes for so many values.
if ! is_sanitized; then
    mkdir large
    entries='' at=0 rows=32768
    for name in gate up down; do
        entries+="${entries:+,}\"model.layers.0.mlp.${name}_proj.weight\":{\"dtype\":\"BF16\",\"shape\":[$rows,2048],\"data_offsets\":[$at,$((at += rows * 2048 * 2))]}"
    done
    save_bytes large/model.safetensors "{$entries}" 0
    truncate -s "+$at" large/model.safetensors
    # peak_of WORD...: one rank's peak is below a third of the model.
    peak_of() {
        command_line="meshwork $*"
        "$build/tool_peak_memory" peak "$program" "$@" >out 2>err
        status=$?
        expect_status 0
        expect_peak_below $((128 << 20))
    }
    for recipe in nvfp4 fp8_tensor W4A16; do
        peak_of quantize --model large --out small --recipe "$recipe"
        if [ "$recipe" = nvfp4 ]; then mv small packed; else rm -rf small; fi
    done
    peak_of convert --model packed --out small --layout compressed-tensors
    rm -rf small
    peak_of convert --model packed --out small --layout bf16
    rm -rf small packed
    peak_of quantize --model large --out small --recipe fp8_row --layout torchao-bin
    rm -rf small large
fi

# ---- a file that is not what it claims ----
cp -r a tampered
printf '\x7e\x01\x7e' | dd of=tampered/model.safetensors bs=1 seek=$(($(stat -c %s a/model.safetensors) - 40000)) conv=notrunc 2>dd.log
run 0 inspect tampered --against "$model"
expect_status 1
expect_text out 'WRONG|NOT'

# ---- usage ----
expect_error 2 'neither --recipe nor --rules' 0 quantize --model "$model" --out z
expect_error 2 'no regular expression' 0 quantize --model "$model" --out z --recipe nvfp4 --match 're:(('
expect_error 2 'has no place for recipe int4_int4' 0 quantize --model "$model" --out z --recipe int4_int4 --layout torchao
expect_error 2 'cannot become' 0 convert --model d --out z --layout deepseek
expect_error 2 'name no weight' 0 quantize --model "$model" --out z --recipe nvfp4 --match 'no.such.name'
expect_error 2 'nested repetitions|match limit' 0 quantize --model "$model" --out z --recipe nvfp4 --match 're:(([a-z.0-9_]+)+)+[^a-z.0-9_]'
expect_error 66 'no folder' 0 quantize --model nowhere --out z --recipe nvfp4
expect_error 73 'exists already' 0 quantize --model "$model" --out a --recipe nvfp4
expect_error 73 'no model folder' 0 quantize --model "$model" --out . --recipe nvfp4 --force
expect_error 2 'the folder of the source' 0 convert --model a --out a --layout bf16 --force
nothing_left z

# ---- hostile folders: 65, nothing written ----
hostile() { # NAME PATTERN
    expect_error 65 "$2" 0 convert --model "$1" --out z --layout bf16
    nothing_left z
}
mkdir outside linked
echo '{"weight_map": {"a": "../a/model.safetensors"}}' >outside/model.safetensors.index.json
hostile outside 'plain name'
echo '{"weight_map": {"a": "/etc/passwd"}}' >outside/model.safetensors.index.json
hostile outside 'plain name'
cp -r d lying
sed -i 's/"num_bits": 4/"num_bits": 8/' lying/config.json
hostile lying 'recipe|weight'
cp -r a lying_torchao
sed -i 's/NVFP4DynamicActivationNVFP4WeightConfig/NVFP4WeightOnlyConfig/' lying_torchao/config.json
hostile lying_torchao 'quantised as nvfp4, but quantization_config says nvfp4_weight_only'
cp -r a silent
sed -i 's/experts/others/' silent/config.json
hostile silent 'quantised as nvfp4, but quantization_config says that it is not'
# Two expressions for one weight: the libraries take different ones.
echo '{"re:.*experts.*up_proj.*": "fp8_row", "re:.*experts.*": "int8_weight_only"}' >two.json
expect_good 0 quantize --model "$model" --out two --rules two.json
expect_good 0 inspect two
expect_text err 'note: for 3 weights, such as .*up_proj.*torchao takes another rule'
# Three, of which both would take another one than the rules: patterns of names instead.
echo '{"re:.*experts.*up_proj.*": "fp8_row", "re:.*.experts.*": "int8_weight_only",
 "re:.*up_proj.*": "int4_weight_only"}' >three.json
expect_good 0 quantize --model "$model" --out three --rules three.json
expect_text err 'note: config.json has patterns made from .* names: .*experts\.0\.up_proj.*fp8_row.*int8_weight_only'
expect_good 0 inspect three
checks=$((checks + 1))
! grep -q 'another rule' err || fail "torchao and transformers read three/config.json differently"
cp -r d ignored
sed -i 's/"lm_head"/"re:.*"/' ignored/config.json
hostile ignored 'ignores'
cp -r a cut
truncate -s -1 cut/model.safetensors
hostile cut 'beyond'
ln -s "$PWD/a/model.safetensors" linked/model.safetensors # as the hub's cache does
expect_good 0 inspect linked
mkdir pickle
printf 'cos\nsystem\n(S"touch hacked"\ntR.' >data.pkl
"$(command -v python3 || echo false)" - <<'EOF' 2>python.log
import zipfile
with zipfile.ZipFile("pickle/pytorch_model.bin", "w") as z:
    z.writestr("pytorch_model/data.pkl", open("data.pkl", "rb").read())
EOF
if [ -e pickle/pytorch_model.bin ]; then
    hostile pickle 'asks for "os system"'
    [ ! -e hacked ] || fail "a pickle was run"
fi

# ---- kill -9 at any moment, then --resume ----
words=(quantize --model "$model" --recipe fp8_row --match "$experts" --max_shard 60KB)
expect_good 0 "${words[@]}" --out whole
for ((moment = 0; moment < moments; moment++)); do
    mpirun --oversubscribe --bind-to none -n 2 "$program" "${words[@]}" --out killed >out 2>err </dev/null &
    job=$!
    disown
    sleep "$(awk -v roll="$RANDOM" 'BEGIN { print 0.15 + 0.45 * roll / 32768 }')"
    for id in $(awk -v job="$job" '/^Pid:/ { id = $2 } /^PPid:/ && $2 == job { print id }' /proc/[0-9]*/status 2>/dev/null) "$job"; do
        kill -9 "$id" 2>/dev/null || true
    done
    while kill -0 "$job" 2>/dev/null; do sleep 0.02; done
    sleep 0.1
    if [ ! -e killed ]; then expect_good 2 "${words[@]}" --out killed --resume; fi
    same_folder whole killed
    rm -rf killed killed.partial
done
mkdir other.partial
expect_error 73 'interrupted' 0 "${words[@]}" --out other
expect_error 73 'another command' 0 "${words[@]}" --out other --resume

# ---- torchao's classes of before April 2026 ----
for old in "$golden"/legacy_torchao/*; do
    if [ ! -e "$old/expected.safetensors" ]; then continue; fi
    rm -rf values modern
    expect_good 0 convert --model "$old" --out values --layout bf16
    for tensor in model.layers.0.mlp.up_proj.weight model.layers.0.mlp.experts.0.down_proj.weight; do
        if ! tensor_bytes "$old/expected.safetensors" $tensor >/dev/null 2>&1; then continue; fi
        expect_tensor_same values/model.safetensors "$old/expected.safetensors" $tensor
    done
    expect_good 0 convert --model "$old" --out modern --layout torchao
    expect_text err 'note: lossless'
done
expect_error 65 'zero points that are not 0' 0 inspect "$golden/legacy_torchao/zero_points"

# ---- a full disk ----
mkdir small
trap 'umount -q "$work/small" 2>/dev/null; leave' EXIT
if mount -t tmpfs -o size=200k tmpfs small 2>mount.log; then
    expect_error 74 'bytes are needed' 2 "${words[@]}" --out small/z
    nothing_left small/z
    umount small
else
    echo "note: no tmpfs may be mounted here, so the full disk was not tried"
fi
finish
