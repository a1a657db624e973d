# Every target sets up all it needs in .venv; a second time that takes no time.
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
export DAGSTER_HOME := $(CURDIR)/deploy/dagster
export DAGSTER_EVENT_BATCH_SIZE ?= 500
# Compiled modules in one place: no such folders in the tree, and processes that start twice as fast.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/pycache
unexport PYTHONDONTWRITEBYTECODE

RETAIL_UI_PORT ?= 3000
SAMPLE_START := 2026-10-05
SAMPLE_END := 2026-11-01
# How many processes share the tests: one more than cores, so that one computes while others wait.
PROCESSES ?= $(shell $(PYTHON) -c "import os; print(1 + (os.cpu_count() or 1))")
FUZZ ?= exports events
MINUTES ?= 30

.PHONY: run ui demo test test-fast fuzz lint format lock bench docs picture setup

run: setup ## Set up, run the batch job on the sample data, print the result
	@$(BIN)/retail-assets backfill --start $(SAMPLE_START) --end $(SAMPLE_END)

ui: setup ## Set up, then the stream worker, the board at http://127.0.0.1:3030 (RETAIL_DASHBOARD_PORT: another port) and the Dagster UI with its daemon at http://127.0.0.1:3000 (RETAIL_UI_PORT: another port), until Ctrl-C
	@exec $(BIN)/python -m retail_assets.cli.services --port $(RETAIL_UI_PORT)

demo: setup ## Set up, then a shop of its own whose history ends yesterday, with events that flow, until Ctrl-C
	@exec $(BIN)/python -m retail_assets.cli.demo --port $(RETAIL_UI_PORT)

test: setup ## Set up and run all tests
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-fast: setup ## The tests that start no process and no server, but for the slow ones
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		-m "not processes and not slow"

fuzz: setup ## Fuzz the readers, MINUTES each (FUZZ=exports or events: one alone); what breaks one is left in .fuzz/
	@# Rounds of five minutes: atheris never frees what a comparison of arrays gave.
	@set -e; rounds=$$((($(MINUTES) + 4) / 5)); for one in $(FUZZ); do for round in $$(seq $$rounds); do \
		$(BIN)/python -m retail_assets_tests.fuzz.$$one .fuzz/$$one \
			-max_total_time=$$((60 * $(MINUTES) / rounds)); done; done

lint: setup ## Formatting, rules of style, types, and which room may import which
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

format: setup
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

bench: setup ## Side-by-side measurements; writes docs/benchmarks.md and docs/benchmarks-*.md
	@$(BIN)/python -m benchmarks

docs: setup ## Write the data dictionary from tables/, the page of settings, the schema of mappings
	@$(BIN)/python -m tools.data_dictionary > docs/data-dictionary.md
	@$(BIN)/python -m tools.settings_page > docs/settings.md
	@$(BIN)/python -m tools.mapping_schema > docs/mapping.schema.json

picture: setup ## Take the picture of the board that the documents show, with Chromium
	@$(BIN)/python -m tools.board_picture

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
	@echo "Setting up .venv: half a minute where packages are cached, 1.5 GB"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv pip sync --quiet $(if $(PIP_INDEX_URL),--default-index $(PIP_INDEX_URL)) --python $(BIN)/python requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

lock: ## Lock every version, for all platforms
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
		--no-annotate --no-header --extra dev --output-file requirements.lock pyproject.toml
