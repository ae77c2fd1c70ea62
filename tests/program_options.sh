#!/usr/bin/env bash
# Wrong options, ranges and meshes: one message of ours, its exit code as mpirun's, no hang, no core.
# $1: the build folder.
# builds: release
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

# What the message must say besides the option and its value, then the words after dp2ep; the last two of them are the
# option that is wrong and its value. Exit code 2, on 2 ranks.
while IFS='|' read -r pattern line; do
    read -ra words <<<"$line"
    expect_error 2 "$pattern" 2 dp2ep "${words[@]}"
    for word in "${words[-2]}" "${words[-1]}"; do
        checks=$((checks + 1))
        grep 'meshwork: error:' err | grep -qF -- "$word" || fail "$command_line: the message does not show $word"
    done
done <<'ROWS'
from 1 to|--experts 0
from 1 to|--experts -4
from 1 to|--experts four
from 1 to|--experts 99999999999999999999
from 1 to|--experts 4x
--experts 4|--top_k 5
from 1 to|--top_k 0
--experts 8|--experts 8 --top_k 9
from 1 to|--dim 0
from 1 to|--hidden -1
no number from 0 to 2147483647 at "-3"|--tokens -3
3 numbers for 2 data ranks|--tokens 5,0,3
1 data rank\b|--mesh tp=2 --tokens 5,0
no number from 0 to 2147483647 at "x"|--tokens 5,x
no number from 0 to 2147483647 at ","|--tokens 5,,
no number from 0 to 2147483647 at ""|--tokens 5,
no number from 0 to 2147483647 at ","|--tokens ,
no number from 0 to 2147483647 at "5\.5"|--tokens 5.5
no number from 0 to 2147483647 at "99999999999"|--tokens 99999999999
4294967294 tokens in all|--tokens 2147483647
a number from|--route_scale nan
a number from|--route_scale lots
cannot be|--score tanh
cannot be|--dtype f17
cannot be|--dtype i64
cannot be|--device tpu
cannot be|--transport pigeon
on device cpu|--device cpu --transport window
on device cpu|--device cpu --transport nccl
even, model, skew:X|--routing odd
even, model, skew:X|--routing skew
even, model, skew:X|--routing skew:
even, model, skew:X|--routing skew:-1
even, model, skew:X|--routing skew:0
even, model, skew:X|--routing skew:x
even, model, skew:X|--routing skew:2x
even, model, skew:X|--routing skew:inf
from 1 to|--align 0
from 1 to|--align -8
from 0 to|--shared_hidden -1
from 0 to|--samples -1
from 0 to|--timeout -1
from 0 to|--max_noise -1
from 0 to|--seed x
multiply to 3, but the job has 2 ranks|--mesh ep=3
multiply to 4, but the job has 2 ranks|--mesh ep=2,dp=2
2 ranks leave no whole number for ep=\*|--mesh dp=3,ep=*
is not name=extent|--mesh ep
neither a number nor|--mesh ep=
not in 1 \.\. 999999|--mesh ep=0
neither a number nor|--mesh ep=-2
axis 'ep' is there twice|--mesh ep=2,ep=1
both dp and ep are '\*'|--mesh dp=*,ep=*
'=2' is not name=extent|--mesh =2
'' is not name=extent|--mesh ,
no axis 'a'|--mesh a=1,b=1,c=1,d=1,e=2
more than 4 axes|--mesh dp=1,ep=1,tp=1,replica=1,dp=2
not in 1 \.\. 999999|--mesh ep=4294967298
no axis 'epp', only ep|--mesh ep=2 --experts_on epp
no axis 'WRONG', only dp, ep|--mesh dp=1,ep=2 --experts_on WRONG
no axis 'ep', only dp, tp|--mesh dp=2,tp=1 --experts_on ep
missing before or behind|--mesh ep=2 --experts_on ep*
axis 'ep' is selected twice|--mesh ep=2 --experts_on ep*ep
ROWS

# Without a value that could be shown.
expect_error 2 '--shared_gate' 2 dp2ep --shared_gate
expect_error 2 '--no_such' 2 dp2ep --no_such
expect_error 2 'bogus' 2 dp2ep bogus
expect_error 2 '--experts.*value|value.*--experts' 2 dp2ep --experts
expect_error 2 'value' 2 dp2ep -o

# The fix helps: the nearest axis, the nearest mesh, how the list is written.
run 2 dp2ep --mesh dp=1,ep=2 --experts_on epp
expect_text err "fix: did you mean 'ep'\? .*dp\*ep"
run 2 dp2ep --mesh ep=3
expect_text err 'fix: .*--mesh ep=2; or start 3 ranks'
run 2 dp2ep --tokens 5,0,3
expect_text err 'fix: .*one per data rank'

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
expect_error 2 'multiply to 3, but the job has 4 ranks' 4 dp2ep --mesh ep=3

finish
