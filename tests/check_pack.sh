#!/usr/bin/env bash
# The archive for machines without a registry holds the headers and libraries a build looks for, and unpacking it
# replaces nothing that is there.
# $1: the source folder. Skipped (77) where no registry can be reached.
# builds: release
set -euo pipefail
cd "${1:-.}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

status=0
tests/pack_gpu_machine.sh pack "$work" >"$work/log" 2>&1 || status=$?
if [ "$status" -eq 69 ]; then
    echo "skipped: no registry: $(tail -n 2 "$work/log" | head -n 1)"
    exit 77
fi
[ "$status" -eq 0 ] || { cat "$work/log" && exit 1; }

tar -tzf "$work/packages.tar.gz" >"$work/list"
bad=0
for name in usr/include/jansson.h usr/include/pcre2.h usr/include/cmocka.h usr/include/papi.h libjansson.so.4 \
    libpcre2-8.so libcmocka.so libpapi.so libpfm.so.4 pkgconfig/jansson.pc; do
    grep -q "$name" "$work/list" || { echo "not in the archive: $name" && bad=1; }
done

# /lib of a modern system is a link to usr/lib and must stay one; a file that is there stays as it is.
mkdir -p "$work/root/usr/lib" "$work/root/usr/include"
ln -s usr/lib "$work/root/lib"
echo "already here" >"$work/root/usr/include/jansson.h"
MESHWORK_UNPACK_ROOT=$work/root tests/pack_gpu_machine.sh unpack "$work"
[ "$(cat "$work/root/usr/include/jansson.h")" = "already here" ] || { echo "jansson.h was replaced" && bad=1; }
[ -L "$work/root/lib" ] || { echo "/lib is no link any more" && bad=1; }
[ -e "$work/root/usr/include/cmocka.h" ] || { echo "cmocka.h was not unpacked" && bad=1; }

status=0
tests/pack_gpu_machine.sh unpack "$work/nowhere" >"$work/log" 2>&1 || status=$?
[ "$status" -eq 66 ] || { echo "no archive: exit code $status instead of 66" && bad=1; }
exit $bad
