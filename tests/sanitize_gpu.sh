#!/usr/bin/env bash
# sanitize_gpu.sh -- every GPU test under compute-sanitizer's memcheck and racecheck, as one table.
#
#   tests/sanitize_gpu.sh [BUILD] [LIMIT_S] [ONLY]      BUILD: where the tests were built (build); LIMIT_S: per run (240);
#                                                       ONLY: regular expression of the rows wanted (all)
#
# All runs start at once, spread over the GPUs; a run that does not end within the limit is killed and listed as such. Not
# part of `./run test`: it takes minutes and the tests check the values without it. Exit code 1 if any run found an error.
set -uo pipefail
build=$(cd "${1:-build}" && pwd)
limit_s=${2:-240}
only=${3:-.}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ -x "$sanitizer" ] || { echo "sanitize: error: no compute-sanitizer" >&2 && exit 69; }
logs=$(mktemp -d)
gpus=$(nvidia-smi --list-gpus | grep -c '^GPU')

# run TOOL NAME GPU WORD...: in the background; leaves NAME.TOOL with the output and the exit code in its last line.
run() {
    local tool=$1 name=$2 gpu=$3
    shift 3
    [[ $name =~ $only ]] || return 0
    {
        CUDA_VISIBLE_DEVICES=$gpu timeout --kill-after=5 "$limit_s" "$@" 2>&1
        echo "exit $?"
    } >"$logs/$name.$tool" &
}

# Return codes of CUDA calls are the program's affair: tests ask for too much memory on purpose, NCCL probes for kernels.
# Kernels of NCCL and cuBLAS (nvjet) are not ours to judge: NCCL's waiting loops take minutes under racecheck, and cuBLAS hands
# over by means that racecheck does not follow.
common=(--error-exitcode 9 --print-limit 5 --report-api-errors no --target-processes all
    --kernel-name-exclude kns=nccl --kernel-name-exclude kns=nvjet)
layer=(dp2ep --device cuda --samples 0 --experts 6 --top_k 2 --dim 64 --hidden 40 --tokens 13)

# every_recipe TOOL NAME WORD...: casts or products of small shapes, without timing: each kernel of each recipe once, where the
# tests of casts and products, which compare many shapes, take longer than the limit.
every_recipe() {
    local tool=$1 name=$2
    shift 2
    run "$tool" "$name" $((turn % gpus)) "${check[@]}" "$build/meshwork" "$@" --device cuda --samples 0
    turn=$((turn + 1))
}
turn=0
for tool in memcheck racecheck; do
    check=("$sanitizer" --tool "$tool" "${common[@]}")
    for test in "$build"/test_*_gpu "$build"/test_kernels_cuda*; do
        name=$(basename "$test")
        case $name in
        *'*'* | test_parallel_* | test_quant_formats_gpu) continue ;; # two ranks; all 2^32 floats, 23 times
        esac
        run "$tool" "$name" $((turn % gpus)) "${check[@]}" "$test"
        turn=$((turn + 1))
    done
    for form in forward transposed dual; do
        every_recipe "$tool" casts_$form casts --form $form --shape 2,256,1024
        every_recipe "$tool" casts_${form}_tails casts --form $form --shape 3,144,528
    done
    for shape in 3,200,128,256 5,20,144,544 1,272,544 16,144,2080; do
        every_recipe "$tool" "gemms_${shape//,/x}" gemms --shape $shape
    done
    run "$tool" dp2ep_exact $((turn % gpus)) "${check[@]}" "$build/meshwork" "${layer[@]}" --shared_hidden 32 --shared_gate
    if [ "$gpus" -ge 2 ]; then
        for mode in exact no-exact; do
            run "$tool" "dp2ep_2ranks_$mode" 0,1 mpirun -n 2 --bind-to none "${check[@]}" "$build/meshwork" "${layer[@]}" --$mode
        done
    fi
done
wait

echo "| test | memcheck | racecheck |"
echo "|---|---|---|"
bad=0
for log in "$logs"/*.memcheck; do
    name=$(basename "$log" .memcheck)
    row="| $name |"
    for tool in memcheck racecheck; do
        code=$(tail -n 1 "$logs/$name.$tool" | sed 's/exit //')
        found=$(grep -ohE 'ERROR SUMMARY: .*|RACECHECK SUMMARY: .*' "$logs/$name.$tool" | sort | uniq -c | sed -E 's/^ *[0-9]+ //' | paste -sd ';')
        case $code in
        0) row+=" ${found:-clean} |" ;;
        77) row+=" skipped |" ;;
        124 | 137) row+=" not finished in $limit_s s, nothing found so far: ${found:-none} |" ;;
        *)
            row+=" exit $code: ${found:-no summary} |"
            bad=1
            cp "$logs/$name.$tool" "${OUT:-$logs}/sanitize_$name.$tool.log"
            ;;
        esac
    done
    echo "$row"
done
exit $bad
