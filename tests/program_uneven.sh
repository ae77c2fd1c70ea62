#!/usr/bin/env bash
# What divides nothing: uneven and empty token shares, experts that ep does not divide, ranks without experts, all
# tokens on one expert. Each run checks itself against one rank (--check is the default).
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

expect_good 4 dp2ep --samples 0 --tokens 5,0,3,1 --top_k 2
expect_good 4 dp2ep --samples 0 --tokens 0,0,0,3 --top_k 4 --no-exact
expect_good 4 dp2ep --samples 0 --tokens 0,0,0,0
expect_good 8 dp2ep --samples 0 --experts 60 --top_k 4 --dim 16 --hidden 8 --tokens 9
expect_good 8 dp2ep --samples 0 --experts 60 --top_k 4 --dim 16 --hidden 8 --tokens 9,0,1,2,3,4,5,6 --no-exact
expect_good 8 dp2ep --samples 0 --experts 5 --top_k 2 --tokens 3 # 1 1 1 1 1 0 0 0
expect_good 8 dp2ep --samples 0 --experts 20 --top_k 20 --tokens 1
expect_good 3 dp2ep --samples 0 --experts 1 --top_k 1 --tokens 4
expect_good 4 dp2ep --samples 0 --routing skew:4 --experts 8 --top_k 2 --tokens 11 --mesh dp=2,ep=2
expect_good 4 dp2ep --samples 0 --routing even --experts 8 --top_k 3 --tokens 11
expect_good 3 dp2ep --samples 0 --dim 1 --hidden 1 --tokens 3
expect_good 3 dp2ep --samples 0 --dim 7 --hidden 13 --tokens 3 --align 1
expect_good 3 dp2ep --samples 0 --tokens 17 --align 128 --dtype f32
expect_good 2 dp2ep --samples 0 --forward_only --tokens 3,4
expect_good 4 dp2ep --samples 0 --experts 8 --top_k 2 --dim 64 --hidden 96 --tokens 37 --dtype bf16 --mesh dp=2,ep=2
expect_good 4 dp2ep --samples 0 --experts 8 --top_k 2 --tokens 6 --mesh 'replica=2,ep=*'
expect_good 4 dp2ep --samples 0 --experts 8 --top_k 2 --tokens 6 --mesh ep=2,tp=2 --experts_on 'ep*tp'

finish
