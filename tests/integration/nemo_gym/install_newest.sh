#!/usr/bin/env bash
# Install nemo-gym 0.7.0 into a venv of its own: install_newest.sh VENV [PYTHON]. Python 3.13, about 1.4 GB. Used by tests only.
# It asks for 3.13.14, and what the tests need of it runs on any 3.13.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
python=${2:-python3.13}
[ -e "$venv/.ready" ] && exit 0
"$python" -m venv "$venv"
"$venv/bin/python" -m pip --quiet --disable-pip-version-check install --ignore-requires-python nemo-gym==0.7.0
touch "$venv/.ready"
