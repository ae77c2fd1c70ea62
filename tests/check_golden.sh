#!/usr/bin/env bash
# The layers and kernels in tests/golden are what PyTorch computes from their inputs, today as on the day they were made.
# $1: the source folder. Skipped (77) where python3 has no torch. PYTHON (environment) names another python.
# builds: release
# labels: oracle
set -euo pipefail
cd "${1:-.}/tests/golden"

python=${PYTHON:-python3}
if ! "$python" -c 'import torch, safetensors' 2>/dev/null; then
    echo "skipped: $python has no torch or no safetensors"
    exit 77
fi
export PYTHONDONTWRITEBYTECODE=1
"$python" make_moe_layers.py check moe_layers/*.safetensors
"$python" lm_kernels/make_lm_kernels.py check lm_kernels/lm_kernels.safetensors
"$python" lm/make_lm.py check lm/*.safetensors
