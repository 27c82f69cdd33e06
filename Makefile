.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHONS := python3.11 python3.12 python3.13 python3.14

# Packages are compiled when they are first imported: most modules of the tools never are.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
PIP_INSTALL_LOCKED := $(PIP_INSTALL) --require-hashes
PYTEST := $(BIN)/python -m pytest
# Two processes: the tests are bound by the processor.
AT_ONCE := --numprocesses 2 --dist worksteal

# Many containers set it. Then each process would compile all that it imports, which takes seconds at each start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/run ## Run the service on http://127.0.0.1:8080 with its own database and demo data; Ctrl-C stops it
	@exec $(BIN)/srm serve --demo

.PHONY: test
test: $(VENV)/dev ## Run all tests, or some: T=tests/api/test_set_up.py (files), K=keyword (names)
ifneq ($(strip $(T)$(K)),)
	$(PYTEST) $(T) $(if $(K),-k "$(K)")
else
	$(PYTEST) $(AT_ONCE)
endif

.PHONY: test-long
test-long: $(VENV)/dev ## Run the tests that take minutes by nature; says at its start how long
	$(PYTEST) -m long

.PHONY: test-tools
test-tools: $(VENV)/dev ## Install the programs that some tests run (nginx, chromium, …); as root, or with sudo
	@$(BIN)/python -m tests.tools

.PHONY: test-quick
test-quick: $(VENV)/dev ## Run the quick part of the tests: tests/unit and tests/api
	$(PYTEST) $(AT_ONCE) tests/unit tests/api

.PHONY: test-python
test-python: ## Run the quick part of the tests on each installed Python, from 3.11 on
	@tested=; for python in $(PYTHONS); do \
		$$python -c '' 2>/dev/null || { echo "$$python: not installed"; continue; }; \
		echo "$$python:"; tested=$$python; \
		$(MAKE) --no-print-directory test-quick VENV=.venv-$$python PYTHON=$$python || exit; \
	done; [ "$$tested" ] || { echo 'None of $(PYTHONS) is on the PATH.'; exit 1; }

.PHONY: test-latest
test-latest: ## Run all tests on the newest releases that setup.cfg allows; needs a C compiler
	$(MAKE) --no-print-directory .venv-latest/pip VENV=.venv-latest
	.venv-latest/bin/pip install --quiet --upgrade --upgrade-strategy eager setuptools --editable '.[embedded,fast,dev]'
	touch .venv-latest/run .venv-latest/dev
	$(MAKE) --no-print-directory test VENV=.venv-latest

.PHONY: lint
lint: $(VENV)/dev ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/dev ## Put the code into the style that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(VENV)/dev ## Write docs/configuration.md from the settings in srm/config.py
	$(BIN)/python docs/configuration.py >docs/configuration.md

.PHONY: lock
lock: ## Renew requirements/*.txt: the newest releases that setup.cfg allows, with hashes
	$(MAKE) --no-print-directory .venv-lock/pip VENV=.venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/uv.txt
	requirements/lock.sh .venv-lock/bin/uv

.PHONY: bench
bench: $(VENV)/dev ## Measure keep-alive, setup and teardown, and judge the marks; needs wrk
	$(BIN)/python -m bench

.PHONY: bench-peer
bench-peer: $(VENV)/dev ## Measure SRM beside FreeRADIUS, and judge the marks; says what it needs
	$(BIN)/python -m bench.peer

.PHONY: bench-import
bench-import: $(VENV)/dev ## Measure a bulk import, and keep-alives beside it; needs wrk
	$(BIN)/python -m bench.import_

.PHONY: bench-reaper
bench-reaper: $(VENV)/dev ## Measure the end of 100,000 sessions at once, and keep-alives beside it; needs wrk
	$(BIN)/python -m bench.reaper

.PHONY: clean
clean: ## Remove the virtual environments and caches; the database in var/ stays
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/run: requirements/run.txt
$(VENV)/dev: requirements/dev.txt
$(VENV)/run $(VENV)/dev: $(VENV)/pip requirements/fast.txt setup.cfg pyproject.toml | python-of-venv
	$(PIP_INSTALL_LOCKED) --only-binary :all: --requirement requirements/$(@F).txt
	@$(PIP_INSTALL_LOCKED) --no-deps --no-build-isolation --requirement requirements/fast.txt 2>$(VENV)/fast.log || { \
		echo "gunicorn's parser in C is not installed; SRM runs without it, a little slower. pip said:"; \
		grep -iE 'error: ' $(VENV)/fast.log || cat $(VENV)/fast.log; \
		echo 'It needs a C compiler and the headers of Python (Debian: apt-get install gcc python3-dev).'; \
		echo 'To try again: touch requirements/fast.txt'; }
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SRM needs Python 3.11 or newer; this is %s: make PYTHON=python3.12 …" % sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments (Debian, Ubuntu: apt-get install python3-venv).'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Fails when the virtual environment has another Python than the one that PYTHON names.
.PHONY: python-of-venv
python-of-venv: $(VENV)/pip
ifneq ($(origin PYTHON),file)
	@wanted=$$($(PYTHON) -V) && found=$$($(BIN)/python -V) || exit; [ "$$wanted" = "$$found" ] || { \
		echo "$(VENV) has $$found, PYTHON=$(PYTHON) is $$wanted: run \`make clean\` first, or name another folder, as in VENV=.venv-other."; \
		exit 1; }
endif
