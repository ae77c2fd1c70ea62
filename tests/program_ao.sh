#!/usr/bin/env bash
# `meshwork ao`: a line for every module, why it was left, near names; autoquant and its rules file.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

expect_lines() { # expect_lines NUMBER REGEX: so many lines of out match
    local found
    found=$(grep -cE -- "$2" out)
    checks=$((checks + 1))
    [ "$found" -eq "$1" ] || fail "$command_line: $found lines match '$2', expected $1"
}

expect_good 0 ao --device cpu --recipe int8_weight_only --match 're:.*experts.*' --samples 0 -o ao.h5
expect_lines 24 'experts\.[0-3]\.[a-z]+_proj +[0-9]+ x [0-9]+ +int8_weight_only +64.0 KiB +3[23]\.[0-9] KiB +4[34]\.[0-9] dB +4[234]'
expect_lines 19 'left: --match re:.*experts.* does not name it'
expect_text out '^24 of 43 modules quantised$'
expect_good 0 results show ao.h5
expect_text out 'SQNR: weight'
expect_good 0 ao --device cpu --recipe fp8_row --samples 2 --skip 're:.*self_attn.*|lm_head'
expect_lines 2 'mlp\.gate +4 x 256 +left: a router; --match can name it'
expect_lines 2 'mlp\.shared_expert_gate +1 x 256 +left: a router'
expect_lines 9 'left: excluded by --skip'
expect_lines 1 'left: no Linear: Embedding'
expect_lines 24 'fp8_row .* dB +.* \+-[0-9]+% .* \+-[0-9]+%'
expect_good 0 ao --device cpu --recipe mxfp4:mode=floor --match model.layers.1.self_attn.q_proj.weight --samples 0
expect_text out '^1 of 43 modules quantised$'

expect_good 0 ao --device cpu --recipe fp8_row --samples 0 --match 're:.*mlp.gate'
expect_lines 2 'mlp\.gate +4 x 256 +left: dimension 0 \(rows\) is 4, which 16 does not divide'

# A file of a stranger: one weight that can be quantised, one that is.
save_bytes model.safetensors '{"a.b.weight":{"dtype":"F32","shape":[16,32],"data_offsets":[0,2048]},"a.n.weight":{"dtype":"BF16","shape":[8],"data_offsets":[2048,2064]},"a.q.weight":{"dtype":"I8","shape":[4,4],"data_offsets":[2064,2080]}}' 2080
expect_good 0 ao --device cpu --recipe mxfp8 --model . --samples 0
expect_lines 1 '^a\.b +16 x 32 +mxfp8'
expect_lines 1 '^a\.q .* left: .*i8'
expect_lines 1 '^a\.n .* left: no Linear: Norm'

# Folders as users have them: experts in one array, several files with an index, quantised before.
source=$golden/checkpoints/source
expect_good 0 ao --device cpu --recipe fp8_row --samples 0 --model "$source"
expect_lines 9 'mlp\.experts\.[0-2]\.(gate|up|down)_proj .*fp8_row '
grep -E 'mlp\.experts\.' out | sort >separate
expect_good 0 convert --model "$source" --out fused --layout bf16 --experts fused --max_shard 100KB
expect_good 0 ao --device cpu --recipe fp8_row --samples 0 --model fused
checks=$((checks + 1))
grep -E 'mlp\.experts\.' out | sort | diff separate - || fail "experts in one array differ from experts one by one"
expect_good 0 ao --device cpu --recipe fp8_row --samples 0 --model fused --match 're:.*experts.gate_up_proj'
expect_text out '^6 of '
expect_good 0 quantize --model "$source" --out quantised --recipe nvfp4
expect_good 0 ao --device cpu --recipe fp8_row --samples 0 --model quantised
expect_text out 'left: already quantised: nvfp4'
expect_text out '^0 of '
expect_error 66 'nowhere' 0 ao --recipe mxfp8 --model nowhere

expect_error 2 'match re:.*gate_prj fits no module' 0 ao --recipe fp8_row --match 're:.*experts.*gate_prj'
expect_text err 'did you mean model.layers.0.mlp.experts.0.gate_proj'
expect_error 2 'skip zzz fits no module' 0 ao --recipe fp8_row --skip zzz
expect_text err 'names look like model'
expect_error 2 "there is no recipe 'fp8_rwo'" 0 ao --recipe fp8_rwo
expect_error 2 'one of --recipe and --autoquant' 0 ao
expect_error 2 'one of --recipe and --autoquant' 0 ao --recipe fp8_row --autoquant

expect_good 0 ao --device cpu --autoquant --min_sqnr 40 --match 're:model.layers.0.*(k_proj|0.down_proj)' --samples 2 \
    --rules_out rules.json
expect_lines 2 ' chosen$'
expect_text out '^64 x 256, 1 modules such as model.layers.0.self_attn.k_proj; two runs of none lie'
expect_lines 2 '^fp8_row .* below 40 dB$'
expect_text rules.json '"_default": null'
! grep -vE '"_default": null|^[{}]$|"model.layers.0.(self_attn.k_proj|mlp.experts.0.down_proj).weight": "[A-Za-z0-9_]+",?' rules.json >odd ||
    fail "odd lines in the rules: $(cat odd)"
checks=$((checks + 1))
expect_error 73 'rules.json' 0 ao --autoquant --rules_out rules.json
expect_error 2 'rules_out is autoquant' 0 ao --recipe fp8_row --rules_out other.json

finish
