#!/usr/bin/env bash
# Install the real megatron-core into a venv of its own: install.sh VENV [PYTHON]. Python 3.11, about 1 GB. Used by tests only.
# torch comes first, so that megatron-core does not choose one with CUDA.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
[ -e "$venv/.ready" ] && exit 0
source "$(dirname "$0")/../venv.sh"
make_torch_venv "${2:-python3.11}"
get "numpy>=1.26" packaging einops psutil "safetensors>=0.5" "transformers>=5.16,<5.20"
get --no-deps megatron-core==0.16.1
touch "$venv/.ready"
