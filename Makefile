# Everything that a newcomer types. `make` alone lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow faults fuzz stress lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv with the `cla` command and everything that the tests need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cla needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1): make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## from simulated video to a feature store and a page to open, on a CPU
	$(BIN)/cla demo

stress: install ## half an hour of kill and resume over 200 clips
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/stress.py --minutes 30 --clips 200 --out $$(mktemp -d)/stress

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## ruff, mypy and pytest, in under ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not slow and not faults and not fuzz'

test-slow: install ## the checks that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow --timeout 900

faults: install ## kill, starve and fool extraction, over a hundred seeded cases
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m faults tests/faults

fuzz: install ## change files of others by hypothesis for CLA_FUZZ_SECONDS (60) with CLA_FUZZ_SEED (0)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m fuzz tests/fuzz

format: install ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, caches and the demo's output
	rm -rf $(VENV) demo .mypy_cache .pytest_cache .ruff_cache *.egg-info
