#!/usr/bin/env bash
# fuzz.sh FOLDER [RUNS] [TARGET...]: libFuzzer under ASan and UBSan on every parser of files from strangers; needs clang.
# FOLDER keeps the programs, the corpora and what crashed; RUNS executions each, 10000000 unless told. Seeds are those of
# tests/golden/fuzz. A crash belongs into tests/golden/fuzz/<target>/, where every test run tries it again.
# MAX_LEN (environment): the longest input, 4096 unless told.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:?a folder for programs and corpora}
runs=${2:-10000000}
shift $(($# < 2 ? $# : 2))
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(safetensors zip pickle index rules checkpoint torch)
max_len=${MAX_LEN:-4096}
mkdir -p "$folder"
# Beside the readers: what they call. harness/ without what needs MPI or a GPU.
sources=(quant/*.c harness/{check,json,file,dtype,tensor,option,arena,device,device_cpu}.c)
generated=${GENERATED:-build/generated}
[ -f "$generated/format_table.c" ] || { echo "no $generated/format_table.c: build first, or set GENERATED" && exit 69; }

flags=(-std=gnu17 -O1 -g -D_GNU_SOURCE -I. -Wno-unknown-pragmas -fno-sanitize-recover=all)
objects=()
for source in "${sources[@]}" "$generated/format_table.c"; do
    object=$folder/$(basename "$source" .c).o
    # Headers are not followed: objects of another day are not trusted.
    [ -n "${KEEP_OBJECTS:-}" ] && [ "$object" -nt "$source" ] ||
        clang "${flags[@]}" -fsanitize=fuzzer-no-link,address,undefined -c "$source" -o "$object"
    objects+=("$object")
done

for target in "${targets[@]}"; do
    program=$folder/fuzz_$target
    clang "${flags[@]}" -fsanitize=fuzzer,address,undefined -DFUZZ_TARGET="fuzz_$target" tests/fuzz_libfuzzer.c \
        "${objects[@]}" -ljansson -lpcre2-8 -lcrypto -lz -lm -ldl -o "$program"
    mkdir -p "$folder/corpus_$target"
    echo "== $target: $runs runs, inputs up to $max_len bytes"
    "$program" -runs="$runs" -max_len="$max_len" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$folder/crash_${target}_" "$folder/corpus_$target" "tests/golden/fuzz/$target" \
        >"$folder/log_$target" 2>&1 || { tail -n 40 "$folder/log_$target" && exit 1; }
    grep -E 'stat::(number_of_executed_units|peak_rss_mb)|cov:' "$folder/log_$target" | tail -n 3
done
