#!/usr/bin/env bash
# The log parser, the JSON scanner and trace_merge under libFuzzer with AddressSanitizer and UndefinedBehaviorSanitizer:
# a short run. The long one, 10 million inputs each:
# builds: release
#
#   FUZZ_RUNS=10000000 tests/program_fuzz.sh build            # FUZZ_TARGETS="torch_log" for one of them
#
# What breaks is left in the build folder as fuzz_<target>-crash-*. $1: the build folder. Skipped (77) without clang's
# libFuzzer.
# timeout: 900
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"
runs=${FUZZ_RUNS:-15000}
# Half of the time of an input would go into keeping what it freed and who took it.
export ASAN_OPTIONS=${ASAN_OPTIONS:-malloc_context_size=2:quarantine_size_mb=8:max_malloc_fill_size=0}

compiler=$(command -v clang clang-19 clang-16 clang-15 clang-14 | head -n 1)
[ -n "$compiler" ] || { echo "skipped: no clang (apt install clang libclang-rt-14-dev)" && exit 77; }
echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n); int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 9; }' >try.c
if ! "$compiler" -fsanitize=fuzzer,address,undefined try.c -o try 2>err; then
    echo "skipped: $compiler has no libFuzzer (apt install libclang-rt-14-dev): $(tail -n 1 err)"
    exit 77
fi

s=$source_folder
sources=("$s"/results/graph/{slice,json_scan,source,trace_reader,trace_ops,trace_merge}.c "$s"/results/graph/torch_log*.c
    "$s"/results/table.c "$s"/harness/{check,json,file}.c)
read -r -a flags < <(pkg-config --cflags --libs jansson zlib)
objects=()
for source in "${sources[@]}"; do
    object=$(basename "$source" .c).o
    "$compiler" -std=c17 -O2 -g -D_GNU_SOURCE -I"$s" -fsanitize=fuzzer-no-link,address,undefined \
        -fno-sanitize-recover=all -c "$source" -o "$object" 2>>err || fail "$source: $(tail -n 3 err)"
    objects+=("$object")
done

# seeds FOLDER: logs, traces and their parts of up to 4096 bytes.
mkdir -p seeds_torch_log seeds_trace
for file in "$golden"/torch_logs/*.txt; do # short ones: an input costs what its bytes cost
    split -b 1000 --additional-suffix=".$(basename "$file")" "$file" seeds_torch_log/
done
head -c 4096 "$golden/torch_logs/train.short.txt" >seeds_torch_log/long
tail -c 4096 "$golden/torch_logs/train.short.txt" >seeds_torch_log/long.end
for file in "$golden"/torch_logs/*.trace.json; do
    { echo '{"traceEvents":[' && grep -A 8 -m 3 '"cat": "\(cpu_op\|kernel\)"' "$file" | tr -d '\n' | head -c 3000; } \
        >"seeds_trace/$(basename "$file")"
    split -b 3000 --additional-suffix=".$(basename "$file")" "$file" seeds_trace/ 2>/dev/null
done
echo '{"traceEvents":[{"cat":"cpu_op","name":"triton_k_0","pid":1,"tid":2,"ts":1.5,"dur":2,"args":{"External id":3,"kernel_hash":"h"}},{"cat":"kernel","name":"triton_k_0","ts":4,"dur":1,"args":{"External id":3,"correlation":5}}]}' \
    >seeds_trace/small
cat >words <<'WORDS'
"TRACED GRAPH\x0a"
" ===== Forward graph 0 =====\x0a"
"    def forward(self, "
"        return ("
"Output code: \x0a"
"# AOT ID: ['0_forward']\x0a"
" = async_compile.triton('"
"'''"
"def call(args):\x0a"
"extern_kernels.mm("
"empty_strided_cuda(("
"DEBUG:torch._inductor.graph.__output_code:"
"V1206 15:18:15.925000 15 torch/x.py:20] [0/0] [__aot_graphs] "
"\"traceEvents\":["
"\"args\":{"
"\"cat\":\"kernel\""
WORDS

fuzz() { # fuzz TARGET SEEDS RUNS
    command_line="fuzz_$1"
    checks=$((checks + 2))
    "$compiler" -std=c17 -O2 -g -D_GNU_SOURCE -I"$s" -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        "$s/tests/fuzz_$1.c" "${objects[@]}" "${flags[@]}" -lm -o "fuzz_$1" 2>err || { fail "no fuzz_$1: $(tail -n 3 err)" && return; }
    mkdir -p "corpus_$1"
    timeout --kill-after=5 "${FUZZ_LIMIT_S:-600}" "./fuzz_$1" -max_len=4096 -runs="$3" -dict=words -rss_limit_mb=4096 -timeout=20 \
        -artifact_prefix="$build/fuzz_$1-" -print_final_stats=1 -reload=0 "corpus_$1" "$2" >out 2>fuzz.log </dev/null
    status=$?
    grep -q "stat::number_of_executed_units: $3" fuzz.log && [ $status -eq 0 ] ||
        fail "fuzz_$1: exit code $status: $(grep -E 'ERROR|SUMMARY|Test unit' fuzz.log | head -n 4)"
    echo "fuzz_$1: $(grep -E 'number_of_executed|average_exec' fuzz.log | tr -s ' \n' ' ')"
}

for target in ${FUZZ_TARGETS:-torch_log json_scan trace_merge}; do
    case $target in
    torch_log) fuzz torch_log seeds_torch_log "$runs" ;;
    json_scan) fuzz json_scan seeds_trace "$runs" ;;
    trace_merge) fuzz trace_merge seeds_trace "$((runs / 5 + 1))" ;;
    esac
done
finish
