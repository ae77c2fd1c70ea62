#!/usr/bin/env bash
# Every C and CUDA file is as clang-format writes it with .clang-format of the root.
# $1: the source folder.
# builds: release
set -euo pipefail
cd "${1:-.}"

command -v clang-format >/dev/null || { echo "skipped: no clang-format"; exit 77; }
# Other versions break lines elsewhere; the one of Debian 12 decides.
version=$(clang-format --version | grep -o 'version [0-9]*' | tr -dc 0-9)
[ "$version" = 14 ] || { echo "skipped: clang-format $version, the rules are those of 14"; exit 77; }

mapfile -t files < <(find harness results quant kernels parallel experiments tests \
    -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
bad=()
for file in "${files[@]}"; do
    if ! clang-format --dry-run -Werror "$file" 2>/dev/null; then bad+=("$file"); fi
done
if [ ${#bad[@]} -gt 0 ]; then
    echo "not formatted: ${bad[*]}"
    echo "fix: clang-format -i ${bad[*]}"
    exit 1
fi
echo "${#files[@]} files are formatted"
