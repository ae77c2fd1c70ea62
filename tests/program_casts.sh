#!/usr/bin/env bash
# `meshwork recipes`, `casts` and `gemms` on the CPU: tables, checks, result files, wrong names and shapes.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

expect_good 0 recipes
for name in none fp8_row fp8_tensor fp8_block fp8_weight_only int8_weight_only int8_dynamic int4_weight_only int4_tile \
    int8_int4 mxfp8 mxfp4 nvfp4 nvfp4_one_level nvfp4_weight_only fp8_int4 int4_int4 deepseek_block \
    FP8_DYNAMIC FP8_BLOCK W8A8 W8A16 W4A16 W4A16_ASYM W4A8 W4AFP8 NVFP4A16 MXFP4 MXFP4A16 MXFP8 MXFP8A16; do
    expect_text out "^$name "
done
recipes=$(($(grep -c '^[^ ]' out) - 1)) # but for the heading
expect_good 0 recipes int4_weight_only:group=32
expect_text out '^blocks +1 x 32 '
expect_good 0 recipes --json
expect_text out '"name": "deepseek_block"'
expect_error 2 "there is no recipe 'mxpf8'" 0 recipes mxpf8
expect_text err 'did you mean mxfp8'

# Every recipe takes this shape; all are compared with the reference.
expect_good 0 casts --device cpu --shape 128,256 --samples 2 -o casts.h5
checks=$((checks + 1))
[ "$(grep -cE ' equal +-?[0-9]' out)" -eq $((recipes - 1)) ] || fail "$command_line: not all recipes but none equal the reference"
[ -s casts.h5 ] || fail "$command_line: no casts.h5"
expect_good 0 results show casts.h5
expect_text out 'byte for byte'
expect_good 0 casts --device cpu --operand activations --shape 3,96 --samples 0
expect_text err 'fp8_block left out: .*96, which 128 does not divide'
expect_good 0 casts --device cpu --shape 0,128 --samples 0
expect_good 0 casts --device cpu --shape 3,16,64 --recipe fp8_row,mxfp4:mode=floor --samples 0 --dtype f32
expect_text out 'mxfp4:mode=floor +equal'

expect_good 0 casts --device cpu --form dual --shape 2,128,256 --samples 1
expect_text out 'mxfp8 +equal'
expect_good 0 casts --device cpu --form transposed --shape 64,48 --samples 0 --recipe fp8_row,int8_dynamic
expect_text out 'fp8_row +equal +- '
expect_good 0 casts --device cpu --grow 14 --samples 2 --recipe fp8_row,nvfp4,W4A16 -o grow.h5
expect_text out 'W4A16 .*2\^1[0-4]$'
expect_error 2 'sizes begin at 2\^10' 0 casts --grow 9
expect_good 0 gemms --device cpu --grow 12 --samples 2 --check_rows 2 --recipe none,fp8_row
expect_text out '^fp8_row .*2\^1[0-2]$'
expect_error 2 'sizes begin at 2\^10' 0 gemms --grow 9

expect_error 2 "there is no recipe 'fp8_rows'" 0 casts --recipe fp8_rows
expect_text err 'did you mean fp8_row'
expect_error 65 'recipe fp8_row: dimension 0 .* is 5, which 16 does not divide' 0 casts --recipe fp8_row --shape 5,64
expect_error 2 'leaves these values as they are' 0 casts --recipe fp8_weight_only --operand activations
expect_error 2 "'7' has one dimension" 0 casts --shape 7
expect_error 2 'is no shape' 0 casts --shape 7,x

# Products: every recipe but those whose blocks 64 columns cut; a file of shapes; one row, no rows.
expect_good 0 gemms --device cpu --shape 3,20,128,256 --samples 2 -o gemms.h5
checks=$((checks + 1))
[ "$(grep -cE ' within bound ' out)" -eq "$recipes" ] || fail "$command_line: not all $recipes recipes within their bounds"
expect_good 0 results show gemms.h5
expect_text out 'SQNR'
printf '# of a layer\n1,32,64 # decode\n\n2,5,16,64\n0,16,64\n' >shapes.txt
expect_good 0 gemms --device cpu --shapes shapes.txt --recipe mxfp8,int8_dynamic,none --samples 0 --dtype f32
checks=$((checks + 1))
[ "$(grep -cE ' within bound ' out)" -eq 9 ] || fail "$command_line: not 3 recipes for 3 shapes"
expect_error 2 'is no shape of a product' 0 gemms --shape 16,16
expect_error 2 "there is no recipe 'mxfp9'" 0 gemms --recipe mxfp8,mxfp9
expect_error 66 'none.txt' 0 gemms --shapes none.txt
: >empty.txt
expect_error 65 'has no shapes' 0 gemms --shapes empty.txt

finish
