#!/usr/bin/env bash
# Lepton's own client, and Ray, into a venv of their own: install.sh VENV [PYTHON]. About 420 MB.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
[ -e "$venv/.ready" ] && exit 0
source "$(dirname "$0")/../venv.sh"
make_venv "${2:-python3.11}"
get leptonai==0.47.1 "ray[default]==2.58.0"
touch "$venv/.ready"
