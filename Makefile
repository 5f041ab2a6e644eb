# Everything runs in .venv; the first use of a target makes it.
VENV := .venv
PYTHON ?= python3
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

# The oldest transformers that is supported, beside the newest of constraints.txt.
OLDEST := 5.17.0
VENV_OLDEST := .venv-$(OLDEST)

# Tiny models gain nothing from threads: one process per core, each with one.
WORKERS := --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: demo lint test test-slow test-gpu test-versions clean

demo: $(VENV)/installed
	deepspeed train.py --recipe tiny_sparse.yaml

lint: $(VENV)/installed
	ruff check
	ruff format --check
	mypy

test: $(VENV)/installed
	OMP_NUM_THREADS=1 pytest $(WORKERS) -m "not slow and not gpu"

test-slow: $(VENV)/installed
	pytest -m "slow and not gpu"

test-gpu: $(VENV)/installed
	pytest -m gpu

# Every family's tests on both versions.
FAMILIES := tests/families tests/modeling tests/checkpoints tests/scripts
test-versions: $(VENV)/installed $(VENV_OLDEST)/installed
	OMP_NUM_THREADS=1 pytest $(WORKERS) -m "not gpu" $(FAMILIES)
	OMP_NUM_THREADS=1 $(VENV_OLDEST)/bin/pytest $(WORKERS) -m "not gpu" $(FAMILIES)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV_OLDEST)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_OLDEST)
	sed 's/^transformers==.*/transformers==$(OLDEST)/' constraints.txt > $(VENV_OLDEST)/constraints.txt
	$(VENV_OLDEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(VENV_OLDEST)/constraints.txt --editable '.[dev]'
	touch $@

# What can be made again. Runs hold trained checkpoints: they are yours to delete.
clean:
	rm -rf .venv* data/cache .pytest_cache .mypy_cache .ruff_cache *.egg-info __pycache__
	find modeling training data checkpoints scripts tests -name __pycache__ -prune -exec rm -rf {} +
