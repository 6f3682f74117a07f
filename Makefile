# Everything runs in .venv, made here from pinned versions. Needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test check tests bench clean

install: $(VENV)/installed

# torch first, so that sam2 (a source distribution that imports torch to build) finds it without a second download.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet setuptools wheel torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --no-build-isolation sam2
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/embedcache demo

test: check tests

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: install
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) embedcache-demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
