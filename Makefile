# Everything runs from .venv, which the first target that needs it creates.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links \
  --no-emit-trusted-host --no-header
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv demo test test-fast chaos compose-test upgrade-test nfs-test check bench format lock clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(READY) ## Create .venv from the pinned requirements (the other targets do it themselves)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; PYTHON=… names another one" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement requirements-build.txt
	$(BIN)/pip install --quiet --require-hashes --no-build-isolation --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY) ## Run everything on made-up projects and a local stack; the results stay in ./demo
	$(BIN)/producer demo --folder demo

test: $(READY) ## Run every test against a real PostgreSQL, a real Valkey and real workers
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

test-fast: $(READY) ## Run the tests that need no server, which takes less than half a minute
	$(BIN)/python -m pytest --quiet -m "not servers and not slow and not long" --hypothesis-profile fast $(ARGS)

chaos: $(READY) ## Run N schedules of faults on real processes from SEED on, with WAVES=1 in waves; without N and SEED also the long tests
	$(if $(N)$(SEED)$(BLOW),,$(BIN)/python -m pytest -m long --timeout 3600 $(ARGS))
	$(BIN)/python -m tests.chaos --schedules $(or $(N),200) --seed $(or $(SEED),1) $(if $(WAVES),--waves) $(if $(BLOW),--blow $(BLOW))

compose-test: $(READY) ## Build the image and play an operator's day by Compose (needs a Docker engine)
	$(BIN)/python -m tests.compose $(ARGS)

upgrade-test: $(READY) ## Take over what the first release leaves, under its own workers (needs the repository's history)
	$(BIN)/python -m tests.upgrade $(ARGS)

nfs-test: $(READY) ## Play a migration on real NFS, 4.2 and 3, in a machine of its own (needs root and mmdebstrap)
	$(BIN)/python -m tests.nfs $(ARGS)

check: $(READY) ## Format and lint check, strict types, import contracts, list of commands against --help
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini --package tests
	$(BIN)/lint-imports
	$(BIN)/python -m tests.command_list

bench: $(READY) ## Measure throughput against cp -r on the same data, as ratios (SIZE=… scales it)
	$(BIN)/python -m tests.bench $(ARGS)

format: $(READY) ## Rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## Renew the requirements files from pyproject.toml (needs pip-tools)
	$(LOCK) --upgrade --extra local --extra dev --output-file requirements.txt pyproject.toml
	$(LOCK) --constraint requirements.txt --output-file requirements-runtime.txt pyproject.toml
	$(LOCK) --constraint requirements.txt --only-build-deps --build-deps-for wheel --output-file requirements-build.txt pyproject.toml
	sed -i '1i # Exact versions and hashes of everything in .venv; written by `make lock`.' requirements.txt
	sed -i '1i # Exact versions and hashes of what the program needs at run time, as in requirements.txt; written by `make lock`.' requirements-runtime.txt
	sed -i '1i # Exact versions and hashes of what builds the wheel, as in requirements.txt; written by `make lock`.' requirements-build.txt

clean: ## Remove .venv, caches and results
	chmod -R u+w demo 2>/dev/null || true
	rm -rf $(VENV) demo dist bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .state
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
