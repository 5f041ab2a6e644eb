# Everything runs in .venv; the first use of a target makes it.
VENV := .venv
PYTHON ?= python3
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

# The oldest transformers that is supported, beside the newest of constraints.txt.
OLDEST := 5.17.0
VENV_OLDEST := .venv-$(OLDEST)

# Of 15,000 Python files a run imports a part, which Python compiles by itself: pip need not compile them all first.
INSTALL := install --quiet --disable-pip-version-check --no-compile

# Tiny models gain nothing from threads: one process per core, each with one.
WORKERS := --numprocesses logical --maxprocesses 8 --dist worksteal

# lmms-eval in an environment of its own, as it asks for other versions of what .venv has.
VENV_LMMS_EVAL := .venv-lmms-eval

# transformers' own tests of models. Its source distribution has them, its wheel does not.
TRANSFORMERS := .venv-transformers-tests

.PHONY: demo testbed lint test test-slow test-gpu fuzz test-versions test-lmms-eval test-transformers clean

demo: $(VENV)/installed
	deepspeed train.py --recipe tiny_sparse.yaml

testbed: $(VENV)/installed
	python scripts/testbed.py

lint: $(VENV)/installed
	ruff check
	ruff format --check
	mypy

test: $(VENV)/installed
	OMP_NUM_THREADS=1 pytest $(WORKERS) -m "not slow and not gpu and not fuzz"

test-slow: $(VENV)/installed
	pytest -m "slow and not gpu"

test-gpu: $(VENV)/installed
	pytest -m gpu

fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 pytest $(WORKERS) -m fuzz tests/fuzz

# Every family's tests on both versions.
FAMILIES := tests/families tests/modeling tests/checkpoints tests/scripts
test-versions: $(VENV)/installed $(VENV_OLDEST)/installed
	OMP_NUM_THREADS=1 pytest $(WORKERS) -m "not gpu and not fuzz" $(FAMILIES)
	OMP_NUM_THREADS=1 $(VENV_OLDEST)/bin/pytest $(WORKERS) -m "not gpu and not fuzz" $(FAMILIES)

test-lmms-eval: $(VENV_LMMS_EVAL)/installed
	OMP_NUM_THREADS=1 $(VENV_LMMS_EVAL)/bin/pytest tests/lmms_eval

test-transformers: $(VENV)/installed $(TRANSFORMERS)/fetched
	OMP_NUM_THREADS=1 PYTHONPATH=$(TRANSFORMERS) SQUINT_TRANSFORMERS_TESTS=$(TRANSFORMERS)/source/tests \
		pytest $(WORKERS) tests/transformers_tests

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV_OLDEST)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_OLDEST)
	sed 's/^transformers==.*/transformers==$(OLDEST)/' constraints.txt > $(VENV_OLDEST)/constraints.txt
	$(VENV_OLDEST)/bin/pip $(INSTALL) --constraint $(VENV_OLDEST)/constraints.txt --editable '.[dev]'
	touch $@

# Of lmms-eval's 60 dependencies, what it needs to ask local files. torchvision has no CPU build for every torch, and
# filelock 4 lacks a module that lmms-eval 0.7.3 imports.
$(VENV_LMMS_EVAL)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_LMMS_EVAL)
	$(VENV_LMMS_EVAL)/bin/pip $(INSTALL) --constraint constraints.txt --editable . \
		pytest 'filelock<4' evaluate loguru pytablewriter pytz sacrebleu tenacity
	$(VENV_LMMS_EVAL)/bin/pip $(INSTALL) --no-deps lmms-eval==0.7.3
	touch $@

$(TRANSFORMERS)/fetched: $(VENV)/installed constraints.txt
	rm -rf $(TRANSFORMERS)
	mkdir -p $(TRANSFORMERS)/source
	$(BIN)/pip download --quiet --no-deps --no-binary transformers --constraint constraints.txt \
		--dest $(TRANSFORMERS) transformers
	tar --extract --gzip --strip-components 1 --directory $(TRANSFORMERS)/source --file $(TRANSFORMERS)/transformers-*.tar.gz
	$(BIN)/pip $(INSTALL) --target $(TRANSFORMERS) parameterized
	touch $@

# What can be made again. Runs hold trained checkpoints: they are yours to delete.
clean:
	rm -rf .venv* data/cache .pytest_cache .mypy_cache .ruff_cache *.egg-info __pycache__
	find modeling training data checkpoints scripts tests -name __pycache__ -prune -exec rm -rf {} +
