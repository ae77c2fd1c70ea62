#!/usr/bin/env bash
# Wrong options, ranges and meshes: one message of ours, its exit code as mpirun's, no hang, no core.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# Exit code 2; then what the message must say; then the words after dp2ep. On 2 ranks.
while IFS='|' read -r pattern words; do
    [ -n "$pattern" ] || continue
    # shellcheck disable=SC2086 # words are split on purpose
    expect_error 2 "$pattern" 2 dp2ep $words
done <<'ROWS'
experts.*0|--experts 0
experts.*-4|--experts -4
experts.*four|--experts four
experts.*99999999999999999999|--experts 99999999999999999999
experts.*4x|--experts 4x
top_k.*5|--top_k 5
top_k.*0|--top_k 0
top_k.*9|--experts 8 --top_k 9
dim.*0|--dim 0
hidden.*-1|--hidden -1
tokens.*-3|--tokens -3
tokens|--tokens 5,0,3
tokens|--tokens 5,x
tokens|--tokens 5,,
tokens|--tokens ,
route_scale|--route_scale nan
route_scale|--route_scale lots
score.*tanh|--score tanh
dtype.*f17|--dtype f17
dtype.*i64|--dtype i64
device.*tpu|--device tpu
transport.*pigeon|--transport pigeon
routing.*odd|--routing odd
skew|--routing skew:
skew|--routing skew:-1
skew|--routing skew:x
align.*0|--align 0
align.*-8|--align -8
shared_hidden.*-1|--shared_hidden -1
samples|--samples -1
timeout|--timeout -1
max_noise|--max_noise -1
seed|--seed x
mesh|--mesh ep=3
mesh|--mesh ep=2,dp=2
mesh|--mesh ep
mesh|--mesh ep=
mesh|--mesh ep=0
mesh|--mesh ep=-2
mesh|--mesh ep=2,ep=1
mesh|--mesh dp=*,ep=*
mesh|--mesh =2
mesh|--mesh ,
mesh|--mesh a=1,b=1,c=1,d=1,e=2
mesh|--mesh ep=4294967298
axis.*epp|--mesh ep=2 --experts_on epp
axis|--mesh ep=2 --experts_on ep*
shared_gate|--shared_gate
no_such|--no_such
bogus|bogus
value|--experts
value|-o
ROWS

# What help says: switches take no value, and a value is refused rather than ignored.
expect_error 2 'exact' 2 dp2ep --exact=maybe

# A device or transport that this machine or build cannot have is hardware (69), not usage.
if ! command -v nvidia-smi >/dev/null; then
    expect_error 69 'cuda|CUDA|GPU' 2 dp2ep --device cuda
fi

# Empty and repeated things that are legal stay legal.
expect_good 2 dp2ep --mesh dp=1,ep=2 --samples 0
expect_good 2 dp2ep --tokens 0 --samples 0
expect_good 1 dp2ep --experts=4 --no-exact --samples 0

# Several wrong ranks still print once.
expect_error 2 'mesh' 4 dp2ep --mesh ep=3
# The message tells the numbers that do not fit.
expect_text err '3'
expect_text err '4'

finish
