#!/usr/bin/env bash
# `meshwork formats` and `meshwork e8m0`: what the tables hold, and a wrong name.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

expect_lines() { # expect_lines NUMBER REGEX: so many lines of out match
    local found
    found=$(grep -cE -- "$2" out)
    checks=$((checks + 1))
    [ "$found" -eq "$1" ] || fail "$command_line: $found lines match '$2', expected $1"
}

expect_good 0 formats
for name in f16 bf16 e4m3fn e5m2 e8m0 e2m1 int8 int4; do expect_lines 1 "^$name "; done
expect_text out '^e4m3fn +8 +s1 e4 m3 +7 +448 '
expect_good 0 formats --json
expect_text out '"schema_name": "meshwork formats"'
expect_lines 8 '"maximum": '

expect_good 0 formats e2m1
expect_lines 16 '^ +[0-9A-F] +[01] [01]{2} [01] '
expect_text out '^ +F +1 11 1 +-6 '
expect_good 0 formats e4m3fn
expect_lines 256 '^ +[0-9A-F]{2} +[01] [01]{4} [01]{3} '
expect_lines 2 ' NaN$'
expect_good 0 formats e8m0 --json
expect_lines 256 '"code": '

expect_error 2 "no format 'e4m3fm'" 0 formats e4m3fm
expect_text err 'did you mean e4m3fn'
expect_error 2 "no format 'zzzzzzzz'" 0 formats zzzzzzzz
expect_error 2 'bogus' 0 formats e2m1 bogus

expect_good 0 e8m0
expect_text out '^1\.5 +3FC00000 +80 +\*7F .* 80$'
expect_text out '^1\.25 \* 2\^-127 +00500000 +01 .*\*00$'
expect_text out '^ *1\.\.253 +1 0 0 +E\+1 '
expect_good 0 e8m0 --every
expect_lines 2048 '^ +[0-9]+ +[01] [01] [01] '
expect_good 0 e8m0 --json
expect_lines 2048 '"sticky": '
expect_error 2 'bogus' 0 e8m0 bogus

finish
