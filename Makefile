# Two commands do everything on a fresh machine:  make serve   make test
# Settings of the service: everlog.toml or EVERLOG_* (see docs/configuration.md).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
ROUNDS ?= 20
SEED   ?=

SERVE_STAMP := $(VENV)/.serve
TEST_STAMP  := $(VENV)/.test
PIP         := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help serve install ui test torture lint bench browser clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: install ## Run the service on http://127.0.0.1:8000 (ARGS="--port 9000" adds flags)
	@$(BIN)/everlog serve $(ARGS)

install: $(SERVE_STAMP) ui ## Set up .venv and the UI, and nothing else

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Everlog needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV) || { echo "error: could not make $(VENV). On Debian: apt-get install python3-venv"; exit 3; }
	@$(PIP) install --upgrade 'pip>=25'

$(SERVE_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Everlog into $(VENV) (once; takes a few minutes) ..."
	@EVERLOG_SKIP_WEB=1 $(PIP) install -c constraints.txt -e . \
	  || { echo "error: installation failed; is there a network? Nothing needs cleaning up: run the command again."; exit 3; }
	@touch $@

ui: | $(BIN)/python
	@$(BIN)/python hatch_build.py

$(TEST_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the tests need into $(VENV) (once) ..."
	@EVERLOG_SKIP_WEB=1 $(PIP) install -c constraints.txt -e '.[test,lint]'
	@touch $@

browser:
	@sh tests/browser.sh

test: $(TEST_STAMP) install browser ## Install what is needed and run every test (ARGS="-k name" narrows)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

torture: $(TEST_STAMP) install ## Kill, freeze, cut, crash under load, for long (ROUNDS=20; SEED=n repeats one)
	@TORTURE_ROUNDS=$(ROUNDS) TORTURE_SEED=$(SEED) $(BIN)/python -m pytest -s tests/crash $(ARGS)

lint: $(TEST_STAMP) ui ## ruff, mypy --strict, TypeScript, import arrows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python hatch_build.py check
	@$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(TEST_STAMP) install ## Benchmarks, each beside its baseline; results in bench/results/
	@$(BIN)/python -m bench $(ARGS)

clean: ## Remove .venv, caches and the built UI (never a database or a model)
	@rm -rf $(VENV) app/transport/static web/node_modules .mypy_cache .ruff_cache .pytest_cache
