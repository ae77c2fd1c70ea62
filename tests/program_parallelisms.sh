#!/usr/bin/env bash
# Training over every kind of mesh equals training on one rank: bit for bit without tp, within a bound with it.
# $1: the build folder.
# timeout: 900
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# exactly RANKS WORDS...: every check says equal.
exactly() {
    expect_good "$1" parallelisms --samples 0 "${@:2}"
    expect_text out '^parameters after step .* equal +good'
    expect_text out '^losses +equal'
    expect_text out '^bytes and memory as explained +equal +good'
}
# within RANKS WORDS...: every check holds its bound.
within() {
    expect_good "$1" parallelisms --samples 0 "${@:2}"
    expect_text out '^parameters after step .* within bound +good'
    expect_text out '^bytes and memory as explained +equal +good'
}

# One mode, all ranks.
for mode in fsdp ddp ep; do
    for ranks in 1 2 3 8; do exactly "$ranks" --mode "$mode"; done
done
for ranks in 2 4 6; do exactly "$ranks" --mode hsdp; done
for ranks in 2 3 4; do
    within "$ranks" --mode tp
    within "$ranks" --mode sp
done

# Uneven and idle ranks, shards that are short or empty, one row over eight ranks.
exactly 4 --mode fsdp --tokens 5,0,3,1
exactly 3 --mode ep --tokens 0,0,4 --experts 5
exactly 8 --mode fsdp --dim 3 --hidden 5 --vocab 2 --tokens 1
exactly 8 --mode fsdp --dim 20 --hidden 20 --vocab 20
within 3 --mode tp --hidden 7 --vocab 5 --dim 8 --tokens 2
within 4 --mode sp --hidden 3 --vocab 3 --dim 8 --tokens 1

# What FSDP does on the way changes nothing.
exactly 4 --mode fsdp --reshard no --accumulate 3
exactly 4 --mode fsdp --reshard 2 --accumulate 2
exactly 3 --mode fsdp --dtype bf16 --reduce_dtype bf16 --accumulate 2 --clip 0
exactly 4 --mode hsdp --reduce_dtype bf16 --optimizer sgd --momentum 0.9
exactly 1 --mode fsdp --dtype bf16

# Gradients where activations were: more of these than of those, and fewer; made in their shards, reduced into them, added up.
few=(--layers 3 --dim 64 --hidden 128 --vocab 64 --tokens 8)
many=(--layers 4 --dim 64 --hidden 128 --vocab 64 --tokens 128)
for mode in fsdp ddp; do
    for ranks in 1 2; do
        exactly "$ranks" --mode "$mode" "${few[@]}"
        exactly "$ranks" --mode "$mode" "${many[@]}"
    done
done
exactly 1 --mode fsdp "${many[@]}" --accumulate 2
exactly 2 --mode ep "${few[@]}" --experts 4

# Experts on one axis, on several, and on axes that the dense part uses otherwise.
exactly 8 --mesh replica=2,dp=2,ep=2 --experts 7 --experts_on 'dp*ep' --top_k 3
exactly 8 --mesh replica=2,dp=2,ep=2 --experts 7 --experts_on 'replica*ep' --balance 0.01 --steps 3
exactly 6 --mesh replica=2,dp=1,ep=3 --experts 7 --balance 0.01 --accumulate 2 --dtype bf16
exactly 4 --mesh dp=4 --experts 6 --mode ddp
exactly 4 --mode ep --no-exact --dtype bf16
exactly 8 --mesh dp=4,ep=2 --experts 5 # fewer experts on a rank than ranks that divide them
within 4 --mesh dp=2,tp=2 --dtype bf16 --no-exact
within 4 --mesh dp=2,tp=2 --dtype bf16 --no-exact --mode sp --experts 4
within 8 --mesh dp=2,ep=2,tp=2 --experts_on 'ep*tp' --layers 4 --dim 256 --experts 12 --steps 3 --check
within 8 --mesh dp=2,ep=2,tp=2 --experts_on 'dp*tp' --experts 5 --tokens 5,0,3,7
within 8 --mesh dp=2,ep=2,tp=2 --experts_on 'ep*tp' --experts 5 --tokens 5,0,3,7 --mode sp
within 8 --mesh dp=2,ep=2,tp=2 --experts 5 --mode sp
within 4 --mesh dp=2,tp=2 --experts 5
within 4 --mesh tp=2,dp=2 --mode ddp --experts 6 --balance 0.1
within 6 --mesh tp=3,dp=2 --mode sp --tokens 7,4

# What cannot be is one message.
expect_error 2 'no axis' 1 parallelisms --mesh foo=1
expect_error 2 'experts_on ep in a model without experts' 2 parallelisms --mesh ep=2 --experts_on ep
expect_error 2 'top_k 9 > --experts 8' 2 parallelisms --mode ep --top_k 9
expect_error 2 'reshard 3 does not divide' 4 parallelisms --mode fsdp --reshard 3
expect_error 2 'none of yes, no, K' 1 parallelisms --reshard often
expect_error 2 '3 numbers for 2 data ranks' 2 parallelisms --tokens 1,2,3
expect_error 2 '0 tokens in all' 2 parallelisms --tokens 0
expect_error 2 'leave no whole number' 3 parallelisms --mode hsdp

finish
