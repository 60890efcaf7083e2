# Every target sets up what it needs in .venv first; a second run finds that done and needs no network.

PYTHON ?= python3
VENV := .venv
OUTPUT ?= demo-output
SEED ?= 0
# Each test worker holds its own PyTorch on one thread.
WORKERS ?= $(shell $(BIN)/python -c 'import os; print(min(4, os.cpu_count() or 1))')
PYTEST_ARGS ?=
LABORATORY ?= laboratory-output
ARMS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo laboratory test lint format types docs build clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables: PYTHON=$(PYTHON) OUTPUT=$(OUTPUT) SEED=$(SEED) WORKERS=<test processes> PYTEST_ARGS=<more for pytest>'
	@echo '           LABORATORY=$(LABORATORY) ARMS=<options of the laboratory>'
	@echo 'pip takes PyTorch from its default index; for the smaller CPU build, set'
	@echo '  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu'

setup: $(VENV)/.installed-demo ## Make .venv and install the package there, with what the demo needs

demo: setup ## Train a tiny captioner with DPO, DPO + anchor and MFPO on a CPU; write pictures and a report to OUTPUT
	$(BIN)/mfpo demo --output-dir $(OUTPUT) --seed $(SEED)

laboratory: $(VENV)/.installed-test ## Measure objectives, negatives, orders and data in a small world; ARMS='--quick', '--all', ...
	$(BIN)/python benchmarks/laboratory --folder $(LABORATORY) $(ARMS)

# The tests run offline, and on the CPU unless CUDA_VISIBLE_DEVICES says otherwise.
test: export CUDA_VISIBLE_DEVICES ?=
test: export HF_HUB_OFFLINE = 1
test: export MPLBACKEND = Agg
test: export OMP_NUM_THREADS = 1
test: export TOKENIZERS_PARALLELISM = false
test: $(VENV)/.installed-test ## Run the tests
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-ruff ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-ruff ## Mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev ## Check the types of src
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## Build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(VENV)/.installed-build ## Build the sdist and, from it, the wheel in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean: ## Remove builds, caches and demo-output, but not .venv
	rm -rf build dist site demo-output src/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# PyTorch goes first and alone, so that no other requirement picks its build.
$(VENV)/.installed-torch: $(VENV)/.created constraints.txt
	$(INSTALL) torch
	@touch $@

$(VENV)/.installed-ruff: $(VENV)/.created constraints.txt
	$(INSTALL) ruff
	@touch $@

$(VENV)/.installed-build: $(VENV)/.created constraints.txt
	$(INSTALL) build setuptools
	@touch $@

# The stem is an extra of setup.cfg.
$(VENV)/.installed-%: $(VENV)/.installed-torch setup.cfg pyproject.toml Makefile
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@
