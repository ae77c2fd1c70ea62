#!/usr/bin/env bash
# Quantised folders in transformers with torchao and with compressed-tensors: they load, and give what the library's own file gives.
# $1: the build folder. MESHWORK_ORACLE_PYTHON names a python with transformers 5, torchao, compressed-tensors and llmcompressor; MESHWORK_ORACLE_MODEL a
# small Qwen2-MoE folder. Skipped (77) without. The table of results/measured/checkpoint_loads.md is this test's with -o.
# labels: oracle
# timeout: 1200
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

python=${MESHWORK_ORACLE_PYTHON:-python3}
if ! "$python" -c 'import llmcompressor, torchao, transformers' 2>/dev/null || [ ! -d "${MESHWORK_ORACLE_MODEL:-}" ]; then
    echo "skipped: $python has no transformers, torchao and llmcompressor, or MESHWORK_ORACLE_MODEL names no folder"
    exit 77
fi
checks=$((checks + 1))
"$python" "$source_folder/tests/oracle_checkpoint_loads.py" --program "$program" --model "$MESHWORK_ORACLE_MODEL" >out 2>err ||
    fail "$(tail -n 1 err)"
# A weight that is another is noticed: the same recipe with a value of the source changed.
checks=$((checks + 1))
MESHWORK_ORACLE_PLANT=1 "$python" "$source_folder/tests/oracle_checkpoint_loads.py" --program "$program" --model "$MESHWORK_ORACLE_MODEL" --only FP8_DYNAMIC >out 2>err &&
    fail "a changed weight passes"
finish
