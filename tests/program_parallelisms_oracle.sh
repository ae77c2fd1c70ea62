#!/usr/bin/env bash
# Planted bugs (SEMANTICS.md section 8) are found and named; without one the same run is good.
# $1: the build folder.
# builds: release
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# named PLANT REGEX RANKS WORDS...: the planted run fails and some line of the checks matches.
named() {
    local plant=$1 pattern=$2 ranks=$3
    shift 3
    expect_good "$ranks" parallelisms --samples 0 "$@"
    expect_error 1 'is not what one rank does' "$ranks" parallelisms --samples 0 "$@" --plant "$plant"
    expect_text out "$pattern"
}
# alone TEXT: no cause in the last output but those that match.
alone() {
    checks=$((checks + 1))
    ! grep -E ' cause +FAILED' out | grep -qvE "$1" || fail "$command_line: causes besides '$1'"
}

named experts_times_ep 'mlp.experts.down_proj .*2 times too large: off by ep ' 6 --mesh dp=3,ep=2 --experts 4
alone 'mlp.experts.(gate_up|down)_proj .*off by ep '
named experts_times_ep 'experts.gate_up_proj .*4 times too large: off by ep ' 8 --mesh dp=2,ep=4 --experts 4
named router_not_reduced 'mlp.gate.weight .*not reduced over tp' 4 --mesh dp=2,tp=2 --experts 4
alone 'mlp.gate.weight .*not reduced over tp'
named router_not_reduced 'mlp.gate.weight .*not reduced over tp' 2 --mode tp --experts 4
named router_not_reduced 'mlp.gate.weight .*not reduced over tp' 4 --mesh ep=2,tp=2 --experts 4 --experts_on 'ep*tp'
named norm_not_reduced 'layernorm.weight .*not reduced over tp' 4 --mesh dp=2,tp=2 --mode sp
alone 'norm.weight .*not reduced over tp'
named unwritten_rows 'layers.0.mlp.down_proj.weight .*not finite from element 0 on' 2 --mode fsdp
named unwritten_rows 'layers.0.mlp.experts.down_proj .*not finite' 2 --mode ep
named stale_gather 'all parameters .*a forward used parameters of an earlier step' 2 --mode fsdp --reshard no --steps 3
named local_loss 'lm_head.weight .*2 times too large: off by dp ' 2 --mode fsdp
named local_loss "all parameters .*divided by a rank's own tokens" 3 --mode fsdp --tokens 3,5,1
named clip_copies 'all parameters .*elements counted twice or not at all across meshes' 4 --mode ddp
named clip_copies 'all parameters .*counted twice' 4 --mode hsdp
named clip_copies 'all parameters .*counted twice' 4 --mesh dp=2,tp=2 --experts 4
named logical_bytes 'bytes and memory as explained .*rows for the rank itself are counted as sent' 2 --mode fsdp
named permuted_rows 'layers.0.mlp.gate_proj.weight .*rows permuted \(24 of 48\): a strided shard' 4 --mesh dp=2,tp=2
alone 'rows permuted'

# What leaves nothing wrong to be named: shards of 20 rows over 8 ranks, an idle expert, an idle rank.
expect_good 8 parallelisms --samples 0 --dim 20 --hidden 20 --vocab 20 --tokens 0,1,0,2,0,0,3,1
expect_good 4 parallelisms --samples 0 --mode ep --experts 16 --top_k 1 --tokens 1,0,2,0

# The oracle's verdict for machines: one object, the cause in it.
expect_error 1 'is not what one rank does' 2 parallelisms --samples 0 --plant unwritten_rows --json
expect_text out '"detail": "not finite from element 0 on'

finish
