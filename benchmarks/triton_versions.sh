#!/usr/bin/env bash
# The Triton tests under other releases of Triton, each in a folder that is thrown away:
#   benchmarks/triton_versions.sh [VERSION ...]      default: 3.6.0 3.9.0
# Everything else comes from the environment of PYTHON (default .venv's). It needs the network and
# about 700 MB of disk; no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
(($#)) || set -- 3.6.0 3.9.0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()
for version in "$@"; do
  packages=("triton==$version")
  # Its interpreter fails on loops with run-time bounds under newer ones (triton issue 9171).
  [[ $version == 3.6.* ]] && packages+=("numpy<2.4")
  "$python" -m pip install --quiet --no-deps --target "$work/$version" "${packages[@]}"
  # Found before what the environment holds, by the children of the tests, too.
  export PYTHONPATH="$work/$version"
  "$python" -c 'import triton; print("triton", triton.__version__, flush=True)'
  OMP_NUM_THREADS=1 "$python" -m pytest -q -n0 -p no:cacheprovider tests/ops/test_triton_*.py ||
    failed+=("$version")
  rm -rf "${work:?}/$version"
done
((${#failed[@]} == 0)) || { echo "failed under: ${failed[*]}" >&2; exit 1; }
