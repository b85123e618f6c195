# `make demo` and `make test` are all that a fresh machine needs; each makes .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
# Written last, so that an interrupted installation is repeated.
INSTALLED := .venv/installed

# Two cores shared by several processes: waiting threads must sleep, not spin (measured 7 times faster).
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest lint audit docs bench notebooks clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'
	@echo "  The first call installs into .venv; PYTHON=python3.12 chooses the interpreter (now $(PYTHON))."

demo: $(INSTALLED) ## Fine-tune the small model that comes along on easy-VQA (some minutes on two cores)
	$(BIN)/lightning-vlm fit --config configs/quickstart.yaml

test: $(INSTALLED) ## Run all tests, those in the docstrings too, on all cores; ends with the ten slowest
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 10

test-all: $(INSTALLED) ## The same with every check on every model family, not only on a sample of them
	$(BIN)/pytest --all-families --numprocesses auto --maxprocesses 8 --dist worksteal --durations 10

lint: $(INSTALLED) ## Check style, types, which module may import which, names and words; print figures
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lightning_vlm callbacks/lightning_vlm_callbacks tools
	$(BIN)/lint-imports
	$(BIN)/python -m tools.house_rules
	$(BIN)/python -m tools.figures

audit: .venv/audit ## Compare the pinned versions with known vulnerabilities, where the package index has a list
	$(BIN)/python -m tools.audit

test-lowest: .venv-lowest/installed ## Run all tests with the oldest versions that pyproject.toml admits
	.venv-lowest/bin/pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 10

docs: $(INSTALLED) ## Build the documentation into site/, without a network; each link is checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: .venv/bench ## Run each benchmark against its rivals (half an hour on two cores)
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

notebooks: $(INSTALLED) ## Run the notebooks and store what they show
	$(BIN)/python -m tools.notebooks

clean: ## Remove .venv and caches (needed before another PYTHON); leaves runs/ alone
	rm -rf .venv .venv-lowest .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, by the constraint: no other package gets to choose its version.
$(INSTALLED): pyproject.toml callbacks/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is older than Python 3.11; make PYTHON=python3.12 chooses another")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e ./callbacks -e ".[dev]"
	touch $@

.venv/bench: $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[bench]"
	touch $@

.venv/audit: $(INSTALLED)
	$(BIN)/python -m pip install "pip-audit>=2.10"
	touch $@

# uv, because pip can't choose the lowest versions. torch is then a build for CUDA, of some gigabytes.
.venv-lowest/installed: pyproject.toml callbacks/pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install uv
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct -e ./callbacks -e ".[test]"
	touch $@
