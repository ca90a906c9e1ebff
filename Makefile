# `make demo` and `make test` work on a fresh clone: each makes .venv, installs with the pins, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# pytest-xdist runs this many processes; each test process keeps to one thread.
JOBS ?= 2

.PHONY: demo test lint format bench clean

demo: $(VENV)/.demo
	$(BIN)/dsc demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell src tests benchmarks docs README.md CHANGELOG.md CONTRIBUTING.md

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/activation_penalty.py
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or later is needed, $(PYTHON) is $$($(PYTHON) --version); say PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras, remade when the pins or the extras change.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$*]'
	@touch $@
