#!/usr/bin/env bash
# Install TRL into a venv of its own: install.sh VENV [PYTHON]. Python 3.11, about 2 GB. Used by tests only; the
# benchmarks make the same venv for themselves.
# torch comes first, so that TRL does not choose one with CUDA.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
python=${2:-python3.11}
here=$(realpath "$(dirname "$0")")
[ -e "$venv/.ready" ] && exit 0
"$python" "$here/../../../scripts/setup_env.py" --venv "$venv" --torch-only ${TORCH:+--torch "$TORCH"}
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install trl==1.16.0
touch "$venv/.ready"
