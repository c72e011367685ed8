#!/usr/bin/env bash
# Checks and times every operator on this machine's GPU, in less than ten minutes:
#
#     OUT=results benchmarks/gpu.sh [arguments of benchmarks/gpu.py]
#
# Runs from a plain checkout: Python 3.11 or newer with torch for CUDA (which brings Triton).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 595 "${PYTHON:-python3}" benchmarks/gpu.py "$@"
