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
.PHONY: help demo test lint docs format figures large bench versions oldest newest clean

help:     ## list the targets
	@grep -E '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(READY)  ## train the digits, fit the polytope, print a table, name the figures
	$(BIN)/python examples/demo.py

test: lint  ## lint, types, tests; the examples and the blocks of README and docs among them
	OMP_NUM_THREADS=1 $(PYTEST) -n 2

docs: $(READY)  ## the site, in docs/_build/html: warnings are errors, its examples are run, its links followed
	PYTHONPATH=$(CURDIR) $(BIN)/python -m sphinx -q -W --keep-going -n docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(READY)  ## draw every figure of docs/figures again
	for name in $$(cd examples && ls *.py | grep -v -e _style -e demo | sed s,.py,,); do \
	    $(BIN)/python examples/$$name.py || exit 1; done

large: $(READY)  ## the larger property runs
	$(PYTEST) -m large

bench: $(READY)  ## time the layer, also beside whichever peers are installed; BENCH=--quick to try
	for name in against_sixty_lines against_peers scaling_with_batch scaling_with_size construction gpu; do \
	    $(BIN)/python benchmarks/$$name.py $(BENCH) || exit 1; done

# What would notice an incompatible version: what is used of cvxpy, calls, failures, modules, derivatives.
CORE := tests/test_cvxpy_internals.py $(addprefix tests/contract/test_, \
    call.py failures.py module.py compile.py values.py func.py)

versions: oldest newest  ## the core tests with the oldest and the newest supported versions

# On Linux pip may find the oldest torch with CUDA only, about 3 GB of it.
oldest: .venv-oldest/.ready
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q $(CORE)

newest: .venv-newest/.ready
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -q $(CORE)

clean:    ## forget the environments, the caches and the site
	rm -rf $(VENV) .venv-oldest .venv-newest .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	    docs/_build docs/gallery

# The constraints pin every version, torch first of all: what is tested is what is installed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

CORE_NEEDS := pytest hypothesis mpmath  # and no examples, whose own requirements are another matter

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints-oldest.txt -e . $(CORE_NEEDS)
	@touch $@

# Torch stays that of constraints.txt, for the same reason; of everything else the newest that pip finds.
.venv-newest/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-newest
	grep '^torch==' constraints.txt > .venv-newest/torch.txt
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	    -c .venv-newest/torch.txt -e . $(CORE_NEEDS)
	@touch $@
