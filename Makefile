# Needs Python 3.11 or newer with pip and venv, and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint check-slow clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(INSTALLED) ## Set up .venv; at once when nothing has changed

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is no Python 3.11 or newer; name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "make: $(PYTHON) cannot make environments; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo 'setting up $(VENV): a minute or two, once'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart,serve,faiss,test,dev]'
	@touch $@

quickstart: install ## Run the main job on real data: table on the terminal, quickstart/report.html
	$(BIN)/l2rm quickstart

# One thread a process: tensors in the tests are small, and threads that wait for each other would only slow them down.
# Hypothesis' profile "ci" draws the same examples every time and minds no clock, so a busy machine fails nothing.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --hypothesis-profile=ci

test: install ## Run the tests
	$(PYTEST) -n 2

lint: install ## Check style, types and the order of the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check-slow: lint test ## Everything that takes longer: slow tests, docstrings' examples, a wheel in an empty environment
	$(PYTEST) -m slow || [ $$? -eq 5 ]  # 5: there are no slow tests
	$(PYTEST) --doctest-modules src/l2rm
	rm -rf build/wheel
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	cd build/wheel && OMP_NUM_THREADS=1 venv/bin/python ../../examples/audit_embeddings.py
	build/wheel/venv/bin/l2rm --version

clean: ## Remove what make and the tools have made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples -name __pycache__ -type d -exec rm -rf {} +
