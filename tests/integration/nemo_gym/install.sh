#!/usr/bin/env bash
# Install the real nemo-gym into a venv of its own: install.sh VENV [PYTHON]. Python 3.12, about 1.4 GB. Used by tests only.
# 0.4.0 is the last release for Python 3.12; later ones need 3.13.14.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
[ -e "$venv/.ready" ] && exit 0
source "$(dirname "$0")/../venv.sh"
make_venv "${2:-python3.12}"
get nemo-gym==0.4.0 math-verify==0.8.0
touch "$venv/.ready"
