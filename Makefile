# Everything runs in .venv; the first use of a target makes it.
VENV := .venv
PYTHON ?= python3
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: demo test test-slow clean

demo: $(VENV)/installed
	deepspeed train.py --recipe tiny_sparse.yaml

test: $(VENV)/installed
	pytest -m "not slow"

test-slow: $(VENV)/installed
	pytest -m slow

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs data/cache
