#!/usr/bin/env bash
# Install nemo-gym 0.7.0 into a venv of its own: install_newest.sh VENV [PYTHON]. Python 3.13, about 1.4 GB. Used by tests only.
# It asks for 3.13.14, and what the tests need of it runs on any 3.13.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
[ -e "$venv/.ready" ] && exit 0
source "$(dirname "$0")/../venv.sh"
make_venv "${2:-python3.13}"
for_uv=(--python-version 3.13.14) for_pip=(--ignore-requires-python)
get nemo-gym==0.7.0
touch "$venv/.ready"
