# `make tiny` and `make test` do all set-up on a machine that has only Python, pip, make and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# torch first: this version is the CPU build on Python 3.11; a free choice of torch pulls gigabytes of CUDA libraries.
TORCH ?= torch==2.13.0

.PHONY: setup tiny test lint integration bench clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,data,wandb,tensorboard,dev]'
	touch $@

tiny: $(READY)
	$(BIN)/nemotron steps run rl/nemo_rl/rlhf -c tiny

# One worker per core; tests of a module stay together, as they share what is costly to make.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

integration: $(READY)
	$(BIN)/python -m pytest tests/integration -m integration

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
