#!/usr/bin/env bash
# Install TRL into a venv of its own: install.sh VENV [PYTHON]. Python 3.11, about 2 GB. Used by tests only; the
# benchmarks make the same venv for themselves.
# torch comes first, so that TRL does not choose one with CUDA.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
[ -e "$venv/.ready" ] && exit 0
source "$(dirname "$0")/../venv.sh"
make_torch_venv "${2:-python3.11}"
get trl==1.16.0
touch "$venv/.ready"
