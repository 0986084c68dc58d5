# Needs Python 3.11 or newer with pip and venv, and make. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-long lint docs check-slow fuzz coverage test-core test-lowest release-check mutants clean

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(INSTALLED) ## Set up .venv; at once when nothing has changed

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is no Python 3.11 or newer; name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "make: $(PYTHON) cannot make environments; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo 'setting up $(VENV): a minute or two, once'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart,hf,finetune,serve,faiss,distributed,ray,docs,test,dev]'
	@touch $@

quickstart: install ## Run the main job on real data: table on the terminal, quickstart/report.html
	$(BIN)/l2rm quickstart

# One thread a process: tensors in the tests are small, and threads that wait for each other would only slow them down.
# Hypothesis' profile "ci" draws the same examples every time and minds no clock, so a busy machine fails nothing.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --hypothesis-profile=ci

test: install ## Run the tests
	$(PYTEST) -n 2

test-long: install ## Run those that take seconds each: processes that are killed, Ray, every command of the pages
	$(PYTEST) -n 2 -m "long and not slow"

lint: install docs ## Check style, types, the order of the rooms, and that the pages build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install ## Build the pages into build/docs; a broken link or a docstring that cannot be read is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check-slow: lint test test-long release-check ## Everything that takes longer: slow tests, docstrings' examples, a release tried out
	$(PYTEST) -m slow || [ $$? -eq 5 ]  # 5: there are no slow tests
	$(PYTEST) --doctest-modules src/l2rm

release-check: install ## Build wheel and sdist; the quick start of the wheel, in an empty environment outside the repository
	rm -rf build/release
	$(BIN)/python -m build --outdir build/release . > /dev/null
	$(PYTHON) -m venv build/release/venv
	build/release/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(ls $(CURDIR)/build/release/*.whl)[quickstart]"
	away=$$(mktemp -d) && cd $$away && OMP_NUM_THREADS=1 $(CURDIR)/build/release/venv/bin/python $(CURDIR)/examples/audit_embeddings.py \
	  && $(CURDIR)/build/release/venv/bin/l2rm quickstart --quiet && test -s quickstart/report.html && rm -rf $$away

fuzz: install ## Damaged files of every kind, many thousands of them: half an hour and more
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --hypothesis-profile=fuzz tests/test_fuzz.py

coverage: install ## Which lines the tests reach
	$(PYTEST) -n 2 -m "not slow" --cov=l2rm --cov-branch --cov-report=term:skip-covered --cov-report=html:build/coverage

mutants: install ## Which of 200 mistakes made in rematching/ the tests would not see: half an hour and more
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py --out build/mutants.json

# Environments of their own, from the requirements in pyproject.toml; torch stays what constraints.txt says.
test-core: ## The tests with no extra installed: what needs one says so and is skipped
	rm -rf build/core && $(PYTHON) -m venv build/core
	$(PYTHON) benchmarks/requirements.py core > build/core.txt
	build/core/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r build/core.txt
	build/core/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	OMP_NUM_THREADS=1 build/core/bin/python -m pytest -q -rs --hypothesis-profile=ci -n 2 -m "not slow"

test-lowest: ## The tests with the lowest versions that pyproject.toml admits, torch excepted
	rm -rf build/lowest && $(PYTHON) -m venv build/lowest
	$(PYTHON) benchmarks/requirements.py lowest > build/lowest.txt
	build/lowest/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r build/lowest.txt
	build/lowest/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	OMP_NUM_THREADS=1 build/lowest/bin/python -m pytest -q --hypothesis-profile=ci -n 2 -m "not slow"

clean: ## Remove what make and the tools have made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples -name __pycache__ -type d -exec rm -rf {} +
