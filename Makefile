# What one does with a clone of Steelyard. `make` alone lists the targets.
.DEFAULT_GOAL := help
BENCHMARKS ?= host weigh ingest memory join_state store_size restart hold silent swap overload crash update privacy gpu
.PHONY: help setup demo test test-long check bench lock clean

PYTHON ?= python3
SECONDS ?= 90
WORKERS ?= logical
BIN := .venv/bin
READY := .venv/.ready

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Build .venv from constraints.txt (a few GB and minutes the first time, an instant after it)

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Steelyard needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Say which: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## Broker, shop, learner and server on this machine for SECONDS=90; ends by itself
	$(BIN)/steelyard demo --seconds $(SECONDS)

test: setup  ## All tests but the long ones, in one process per core, 4 at most, or in WORKERS=2
	$(BIN)/python -m pytest -m "not long" -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-long: setup  ## All tests, one after the other
	$(BIN)/python -m pytest

check: setup  ## What a change must pass beside its tests: lint, format, types, layering, frozen surface
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py tests/test_surface.py

bench: setup  ## The benchmarks that need no data, one after the other; hours
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

lock:  ## Pin constraints.txt anew from pyproject.toml (needs uv on PATH)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --quiet --output-file constraints.txt

clean:  ## Remove .venv and what tools cached here
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
