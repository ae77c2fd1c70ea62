#!/usr/bin/env bash
# Where results go: nothing unless asked for; never over something silently; 73 and 74 where it cannot be; no half file.
# $1: the build folder.
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

only_files() { # the files that are there besides those of this script
    checks=$((checks + 1))
    local found
    found=$(find . -maxdepth 1 -type f ! -name out ! -name err ! -name compared ! -name 'tensor.?' ! -name 'core*' -printf '%f\n' |
        sort | tr '\n' ' ')
    [ "$found" = "${1:+$1 }" ] || fail "$command_line: the folder holds '$found', expected '$1'"
}

# One line on stderr for each measurement, whatever goes to stdout.
for words in '' --json '-o told.h5'; do
    # shellcheck disable=SC2086 # two words
    expect_good 2 dp2ep --samples 2 $words
    checks=$((checks + 1))
    told=$(sed -nE 's/^[0-9:]{8} meshwork: measured ([a-z]+): total, median [0-9.]+ [mun]?s, 2 samples, noise .*/\1/p' err | xargs)
    [ "$told" = "forward step phases" ] || fail "$command_line: the lines on stderr tell of '$told'"
    checks=$((checks + 1))
    ! grep -q 'meshwork: measured' out || fail "$command_line: a line about a measurement is on stdout"
done
rm told.h5

expect_good 2 dp2ep --samples 2
only_files ''

expect_good 2 dp2ep --samples 2 -o r.h5
only_files r.h5
expect_good 0 results show r.h5
expect_text out 'dp2ep'
expect_good 0 results show r.h5 --json
expect_text out '^\{'

# The file is there: refused before any work, and left as it was.
cp r.h5 before
expect_error 73 'r\.h5' 2 dp2ep --samples 2 -o r.h5
expect_text err 'fix: .*--force'
expect_same r.h5 before "an output that was refused"
rm before
expect_good 2 dp2ep --samples 2 -o r.h5 --force
only_files r.h5
expect_good 2 dp2ep --samples 1 --save s.safetensors
expect_error 73 's\.safetensors' 2 dp2ep --samples 1 --save s.safetensors
rm r.h5 s.safetensors

expect_error 73 'no/such' 2 dp2ep --samples 1 -o no/such/r.h5
expect_error 73 'no/such' 2 dp2ep --samples 1 --save no/such/s.safetensors
mkdir folder.h5
expect_error 73 'folder' 2 dp2ep --samples 1 -o folder.h5
only_files ''

# An interrupted run's journal is somebody's data too.
echo "what is left of a run" >r.journal
expect_error 73 'r\.journal' 2 dp2ep --samples 1 -o r.h5
rm r.journal

# Reading what is not ours, not there, or cut.
expect_error 66 'absent' 0 results show absent.h5
echo "no HDF5" >text.h5
expect_error 65 'text' 0 results show text.h5
expect_error 66 'absent' 0 results recover absent.journal -o x.h5
expect_error 65 'text' 0 results recover text.h5 -o x.h5
rm -f text.h5 && only_files ''

# h5dump reads it without a plug-in.
if command -v h5dump >/dev/null; then
    expect_good 2 dp2ep --samples 3 -o r.h5
    h5dump -H r.h5 >dump 2>&1 || fail "h5dump cannot read the result"
    expect_text dump 'ATTRIBUTE "schema_name"'
    expect_text dump 'ATTRIBUTE "schema_version"'
    expect_text dump 'GROUP "dp2ep"'
    rm -f dump r.h5
fi

# Without the right to write (root may write anywhere, so it steps down first).
if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
    mkdir closed && chmod 755 . closed
    command_line="meshwork dp2ep -o closed/r.h5, as another user"
    setpriv --reuid=65534 --regid=65534 --clear-groups timeout "$run_limit_s" "$program" dp2ep --samples 1 \
        -o closed/r.h5 >out 2>err </dev/null
    status=$?
    # A build folder that this user cannot enter says nothing about us (126, 127).
    if [ $status -lt 126 ]; then
        expect_status 73
        expect_text err 'meshwork: error: .*closed'
    fi
    rmdir closed
fi

# A full disk: 74 (or 73 when not even the journal's first line fits), and no file that looks complete.
trap 'umount -q "$work/small" 2>/dev/null; leave' EXIT
if [ "$(id -u)" -eq 0 ] && mkdir small && mount -t tmpfs -o size=16k tmpfs small 2>/dev/null; then
    expect_error '74' 'space|full' 2 dp2ep --samples 60 --max_noise 0 -o small/r.h5
    checks=$((checks + 1))
    [ ! -e small/r.h5 ] || fail "a full disk left something called r.h5"
    # What did not get into the journal was not told.
    checks=$((checks + 1))
    told=$(grep -c 'meshwork: measured' err) kept=$(grep -c '"kind": *"measurement"' small/r.journal)
    if [ "$told" -ne "$kept" ] || [ "$told" -eq 0 ]; then
        fail "$command_line: a full disk holds $kept measurements, $told were told"
    fi
    head -c 16384 /dev/zero >small/fill 2>/dev/null
    run 2 dp2ep --samples 1 -o small/q.h5
    checks=$((checks + 1))
    case $status in 73 | 74) ;; *) fail "$command_line on a full disk: exit code $status" ;; esac
    expect_text err 'meshwork: error: '
    rm -f small/*
    run 2 dp2ep --samples 1 --dim 64 --hidden 64 --tokens 64 --save small/s.safetensors
    expect_status 74
    checks=$((checks + 1))
    [ ! -e small/s.safetensors ] || fail "a full disk left something called s.safetensors"
    umount small
else
    echo "note: no tmpfs may be mounted here, so the full disk was not tried"
fi
rmdir small 2>/dev/null
expect_no_core

finish
