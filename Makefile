# Every target does its own set-up: one virtual environment, one stamp per set of extras, every version from constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# Small networks run several times as fast on one thread each as on all of them.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export MPLBACKEND := Agg
export SDL_VIDEODRIVER := dummy

# What `make format` and the first half of `make lint` look at.
SOURCES := otbaselines zoo tests docs

.PHONY: help train test test-slow lint type format docs benchmark clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

train: $(VENV)/.zoo  ## train WBC beside IPPO, evaluate both and draw them under runs/
	$(BIN)/python -m zoo.demo

test: $(VENV)/.tests  ## every test but the slow ones
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist worksteal --timeout 300

test-slow: $(VENV)/.tests  ## the learning tests over several seeds
	$(BIN)/python -m pytest -m slow -n $(JOBS) --timeout 7200

lint: type  ## style, types and the direction of imports
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

# Types are checked with every library in place: without its stubs a missing one would read as `Any`.
type: $(VENV)/.lint $(VENV)/.tests  ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.lint  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(VENV)/.docs  ## the manual in docs/_build/html, warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

benchmark: $(VENV)/.tests  ## speed against SB3 on SuperSuit and against POT, as tables
	$(BIN)/python -m zoo.benchmark

clean:  ## remove everything that the other targets made, except runs/
	rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself, because whatever else asks for it must find this version in place.
$(VENV)/.base: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed, but '$(PYTHON)' is another or missing; name one with: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools torch==2.13.0
	touch $@

# One rule per set of extras: .tests holds what the tests need, and so on. Without build isolation the pinned
# setuptools builds the package, and nothing outside constraints.txt is ever fetched.
$(VENV)/.zoo $(VENV)/.tests $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.base pyproject.toml
	$(PIP) --no-build-isolation --editable ".[$*]"
	touch $@
