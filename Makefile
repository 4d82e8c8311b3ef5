# Everything runs from a virtual environment that these targets make themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-long test-k8s sim sim-minimise services lint types bench format schemas clean

help: ## Show this list
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

install: $(STAMP) ## Install delta-sink and everything its tests need into .venv

$(STAMP): pyproject.toml hatch_build.py $(wildcard delta_sink/decode/native/*.zig)
	@$(PYTHON) -c 'import sys; sys.exit("delta-sink needs Python 3.11 or later, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing: install python3-venv (Debian, Ubuntu)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## Run the main job on embedded parts: records in, a Delta table out, the audit
	@$(BIN)/delta-sink demo

test: $(STAMP) ## Run all tests that fit in a quarter of an hour
	@$(BIN)/python -m tests.services install
	$(BIN)/python -m pytest -n 3 --max-worker-restart 0 --dist loadgroup -m "not long"

test-fast: $(STAMP) ## Run the unit tests that need no processes and no servers, in a minute
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 -m "not long and not process" tests/unit tests/test_tidy.py

test-long: $(STAMP) ## Run every test, the long ones too
	@$(BIN)/python -m tests.services install
	$(BIN)/python -m pytest -n 2 --max-worker-restart 0 --dist loadgroup

test-k8s: $(STAMP) ## Run the chart on a real Kubernetes API server, which is built once
	@$(BIN)/python -m tests.services install-k8s
	$(BIN)/python -m pytest -n 0 tests/k8s

SEEDS ?= 2000
SEED0 ?= 0
JOBS ?= 2
WORLD ?= writers

sim: $(STAMP) ## Run SEEDS (2000) seeds of a WORLD (writers or upkeep) from SEED0 (0) on, in JOBS (2) processes
	@$(BIN)/python -m tests.simulation --world $(WORLD) --seeds $(SEEDS) --seed0 $(SEED0) --jobs $(JOBS)

sim-minimise: $(STAMP) ## Make a failing seed smaller: make sim-minimise SEED=17
	@$(BIN)/python -m tests.simulation --minimise $(SEED)

services: $(STAMP) ## Run Kafka, an S3 and a DynamoDB server until Ctrl-C; print how to reach them
	@$(BIN)/python -m tests.services up

lint: $(STAMP) ## Check style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: $(STAMP) ## Check types (mypy strict)
	$(BIN)/mypy

bench: $(STAMP) ## Measure the commit path, drains, compaction and small files, as ratios within one run
	$(BIN)/python -m benchmarks

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: $(STAMP) ## Write the JSON Schema of the configuration file anew
	$(BIN)/python -m delta_sink.config > schemas/config.schema.json

clean: ## Remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
