#!/usr/bin/env bash
# Merged traces in Holistic Trace Analysis: the same tables as for the trace itself.
# $1: the build folder. MESHWORK_ORACLE_PYTHON names a python with the package HolisticTraceAnalysis; skipped (77) without.
# labels: oracle
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

python=${MESHWORK_ORACLE_PYTHON:-python3}
if ! "$python" -c 'import hta' 2>/dev/null; then
    echo "skipped: $python has no hta (pip install HolisticTraceAnalysis)"
    exit 77
fi

# Not infer: HTA 0.5 stops at an assertion of its own in the trace as PyTorch wrote it.
for name in fp8 layernorm train; do
    expect_good 0 trace_merge "$golden/torch_logs/$name.trace.json" "$golden/torch_logs/$name.short.txt" -o "$name.json"
    checks=$((checks + 1))
    "$python" "$source_folder/tests/oracle_trace.py" "$golden/torch_logs/$name.trace.json" "$name.json" >out 2>err ||
        fail "$name: $(tail -n 2 err)"
done
# A time that is another is noticed.
sed '0,/"dur": [0-9]/s/"dur": \([0-9]\)/"dur": 9\1/' train.json >changed.json
checks=$((checks + 1))
! "$python" "$source_folder/tests/oracle_trace.py" "$golden/torch_logs/train.trace.json" changed.json >out 2>err ||
    fail "a changed duration passes"

finish
