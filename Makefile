# `make tiny` and `make test` do all set-up on a machine that has only Python, pip, make and git.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Empty: scripts/setup_env.py takes a torch that fits the machine and says why. TORCH='torch==2.13.0' overrules it.
TORCH ?=

.PHONY: FORCE setup tiny test full lint integration bench clean

setup: $(READY)

$(READY): pyproject.toml $(if $(TORCH),FORCE)
	$(PYTHON) scripts/setup_env.py --venv $(VENV) $(if $(TORCH),--torch '$(TORCH)')
	touch $@

tiny: $(READY)
	$(BIN)/nemotron steps run rl/nemo_rl/rlhf -c tiny

# One worker per core; tests of a module stay together, as they share what is costly to make, in the order of testpaths.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

# Cases that `make test` leaves out: runs killed at other moments, and what a run of each step reads of its config. A few
# are processes of their own, with as many threads as they take by themselves; tests/steps/conftest.py.
full: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m full --durations 15 --numprocesses 2 --dist loadscope --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

integration: $(READY)
	$(BIN)/python -m pytest tests/integration -m integration --durations 25

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
