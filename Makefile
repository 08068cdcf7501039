# make demo     the main job on a small rendered world, with a report in runs/demo
# make test     the tests, but for the slow ones (make slow)
# make faults   runs that are killed, signalled or out of disk at 30 random places, and resumed (SEED=1: 30 others)
# make bench    speed and memory against peers and limits, sized for 15 minutes on 2 cores (18 without AVX-512): runs/bench/results.json, docs/benchmarks.md
#               (PART="loader retrieval" for some parts, DEVICE=cuda on a GPU)
# make objectives    each objective alone on the shapes world: a table (ONLY="matching ..." for some of them)
# make recipes  docs/recipes.md out of the configs
# make lint     style, types and the floors of the house
# PYTHON=python3.12 make test    with another interpreter (when .venv is made)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test slow faults bench objectives recipes lint install clean

demo: $(INSTALLED)
	$(BIN)/python -m tests.e2e.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

faults: $(INSTALLED)
	VLP_FAULTS_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -m "slow or not slow" \
		tests/distributed/test_faults.py tests/distributed/test_elastic.py

bench: $(INSTALLED)
	$(BIN)/python -W ignore -m tests.benchmarks $(PART) $(if $(DEVICE),--device $(DEVICE))

objectives: $(INSTALLED)
	$(BIN)/python -W ignore -m tests.benchmarks.objectives $(ONLY)

recipes: $(INSTALLED)
	$(BIN)/python -m vlp.recipes > docs/recipes.md

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

install: $(INSTALLED)

# The tested versions are of Python 3.11; some of them have no release for 3.10, where pip takes the newest that has.
$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 6 GB, mostly torch; some minutes."
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; \
	then $(BIN)/pip install -c constraints.txt -e '.[dev]'; \
	else $(BIN)/pip install -e '.[dev]'; fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
