# make demo | make test | make test-lab | make check | make docs: each sets up what it needs in one environment, .venv, and runs.
# Needs: python3 (3.11 or later, with venv), make, git. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
TESTS := tests --ignore=tests/lab
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test test-lab check docs clean

help:
	@echo "make demo      the whole story on embedded models; the report is demo/report/index.html"
	@echo "make test      the product's tests; some of them: make test TESTS=tests/tables"
	@echo "make test-lab  the laboratory's tests"
	@echo "make check     ruff and mypy"
	@echo "make docs      the documentation; open docs/_build/html/index.html"
	@echo "make clean     removes the environment and what the commands made"

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (torch included: some gigabytes, some minutes, once) ..."
	$(PIP) install --quiet --progress-bar on -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.checkers: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.documenters: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/visual-heads demo --out demo

test: $(VENV)/.installed
	$(PYTEST) $(TESTS)

test-lab: $(VENV)/.installed
	$(PYTEST) tests/lab

check: $(VENV)/.checkers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.documenters
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) demo docs/_build docs/generated build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
