#!/usr/bin/env bash
# --load with files that are missing, cut, wrong or hostile: 66 or 65, one message that names the rule; never a crash.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

layer=$golden/moe_layers/score-before.safetensors
size=$(stat -c %s "$layer")
header_bytes=$(od -An -tu8 -N8 "$layer" | tr -d ' ')

refuse() { # refuse STATUS REGEX FILE
    expect_error "$1" "$2" 2 dp2ep --samples 0 --load "$3"
    expect_text err "$(basename "$3")"
}

refuse 66 'absent' absent.safetensors
mkdir folder
refuse 65 'folder' folder
: >empty.safetensors
refuse 65 'empty' empty.safetensors
mkfifo pipe.safetensors
refuse 65 'pipe' pipe.safetensors

# Cut at every place that means something else: in the length, the header, its last byte, the data, the last byte.
for bytes in 1 7 8 9 $((8 + header_bytes / 2)) $((8 + header_bytes - 1)) $((8 + header_bytes)) $((size - 1000)) $((size - 1)); do
    head -c "$bytes" "$layer" >"cut-$bytes.safetensors"
    refuse 65 '' "cut-$bytes.safetensors"
done
cp "$layer" longer.safetensors && printf x >>longer.safetensors
refuse 65 '' longer.safetensors

# Lengths that no header has.
for length in '\xff\xff\xff\xff\xff\xff\xff\xff' '\xff\xff\xff\xff\xff\xff\xff\x7f' '\x00\x00\x00\x00\x00\x00\x00\x00' \
    '\x00\x00\x00\x40\x00\x00\x00\x00'; do
    printf %b{} "$length" >length.safetensors
    refuse 65 '' length.safetensors
done

# A whole layer as text, 2 tokens, 2 experts, hidden 2, inner 2, f32: each row of the list below spoils one thing.
meta='"__metadata__":{"score":"sigmoid","top_k":"1","score_before_experts":"false","normalise_top_k":"false","route_scale":"1.0"}'
rest='"router":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]},"w1":{"dtype":"F32","shape":[2,2,2],"data_offsets":[32,64]},"w3":{"dtype":"F32","shape":[2,2,2],"data_offsets":[64,96]},"w2":{"dtype":"F32","shape":[2,2,2],"data_offsets":[96,128]},"grad_y":{"dtype":"F32","shape":[2,2],"data_offsets":[128,144]}'
x='"x":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}'

# The unspoilt one is good, so that what follows fails for its own reason.
save_bytes whole.safetensors "{$meta,$x,$rest}" 144
expect_good 2 dp2ep --samples 0 --load whole.safetensors

number=0
while IFS='|' read -r pattern old new; do
    [ -n "$old" ] || continue
    number=$((number + 1))
    header="{$meta,$x,$rest}"
    [[ $header == *"$old"* ]] || fail "row $number spoils nothing: $old"
    save_bytes "spoilt-$number.safetensors" "${header/"$old"/"$new"}" 144
    refuse 65 "$pattern" "spoilt-$number.safetensors"
done <<'ROWS'
|{"__metadata__"|["__metadata__"
|"data_offsets":[0,16]|"data_offsets":[0,17]
|"data_offsets":[0,16]|"data_offsets":[16,0]
|"data_offsets":[0,16]|"data_offsets":[-16,0]
|"data_offsets":[0,16]|"data_offsets":[0,18446744073709551632]
|"data_offsets":[0,16]|"data_offsets":[0]
|"data_offsets":[0,16]|"data_offsets":[0,1e99]
|"data_offsets":[16,32]|"data_offsets":[0,16]
|"shape":[2,2],"data_offsets":[0,16]|"shape":[2,3],"data_offsets":[0,16]
|"shape":[2,2],"data_offsets":[0,16]|"shape":[4294967296,4294967296,0,4],"data_offsets":[0,16]
|"shape":[2,2],"data_offsets":[0,16]|"shape":[-2,-2],"data_offsets":[0,16]
|"shape":[2,2],"data_offsets":[0,16]|"shape":[9223372036854775807,2],"data_offsets":[0,16]
|"shape":[2,2],"data_offsets":[0,16]|"shape":"2,2","data_offsets":[0,16]
|"shape":[2,2],"data_offsets":[0,16]|"shape":[4],"data_offsets":[0,16]
x|"shape":[2,2],"data_offsets":[0,16]|"shape":[1,4],"data_offsets":[0,16]
|"dtype":"F32","shape":[2,2],"data_offsets":[0,16]|"dtype":"F33","shape":[2,2],"data_offsets":[0,16]
|"dtype":"F32","shape":[2,2],"data_offsets":[0,16]|"dtype":"I32","shape":[2,2],"data_offsets":[0,16]
|"dtype":"F32","shape":[2,2],"data_offsets":[0,16]|"shape":[2,2],"data_offsets":[0,16]
|"x":|"router":
x|"x":|"y":
router|"router":|"gate":
w1|"w1":|"v1":
w2|"w2":|"v2":
grad_y|"grad_y":|"grad_z":
top_k|"top_k":"1"|"top_k":"3"
top_k|"top_k":"1"|"top_k":"0"
top_k|"top_k":"1"|"top_k":"one"
top_k|"top_k":"1",|
score|"score":"sigmoid"|"score":"tanh"
score|"score":"sigmoid",|
route_scale|"route_scale":"1.0"|"route_scale":"fast"
score_before|"score_before_experts":"false"|"score_before_experts":"perhaps"
|"score":"sigmoid"|"score":7
ROWS

# Bytes that are no text, and a header as deep as it is long.
save_bytes deep.safetensors "{\"x\":$(head -c 200000 /dev/zero | tr '\0' '[')" 0
refuse 65 '' deep.safetensors
save_bytes control.safetensors "{$meta,$x,$rest}" 144
printf '\xff\xfe\x01' | dd of=control.safetensors bs=1 seek=20 conv=notrunc status=none
refuse 65 '' control.safetensors

# A name that a terminal would obey is not printed raw.
save_bytes escape.safetensors '{"\u001b[31mred":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' 4
refuse 65 '' escape.safetensors
checks=$((checks + 1))
! grep -q $'\x1b' err || fail "$command_line: an escape sequence reached the terminal"

finish
