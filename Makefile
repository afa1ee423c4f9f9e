# `make demo` and `make test` do all their own set-up, once, in .venv; nothing by hand.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST ?= $(BIN)/python -m pytest -q

# A thread that waits should sleep, not spin: many small problems are solved, and on two cores that other
# programs use as well, spinning makes them ten times slower.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help demo test lint format figures large bench clean

help:     ## list the targets
	@grep -E '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(READY)  ## train the digits, fit the polytope, print a table, name the figures
	$(BIN)/python examples/demo.py

test: lint  ## lint, types, tests; the examples and the blocks of README and docs among them
	OMP_NUM_THREADS=1 $(PYTEST) -n 2

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(READY)  ## draw every figure of docs/figures again
	for name in $$(ls examples | grep -v -e _style -e demo | sed s,.py,,); do \
	    $(BIN)/python examples/$$name.py || exit 1; done

large: $(READY)  ## the larger property runs
	$(PYTEST) -m large

bench: $(READY)  ## time the layer, also beside whichever peers are installed; BENCH=--quick to try
	for name in against_sixty_lines against_peers scaling_with_batch scaling_with_size construction gpu; do \
	    $(BIN)/python benchmarks/$$name.py $(BENCH) || exit 1; done

clean:    ## forget the environment and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The constraints pin every version, torch first of all: what is tested is what is installed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
