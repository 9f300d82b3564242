# Two commands set everything up: `make compare` runs the main job, `make test` passes the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# flags for the commands, e.g. make compare ARGS="--total-timesteps 20000"
ARGS ?=

.PHONY: compare test slow check lint types clean

compare: $(VENV)/ready
	$(BIN)/python -m experiments compare $(ARGS)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto -m "not slow" $(ARGS)

# everything that must hold before a change lands
check: lint types test slow

slow: $(VENV)/ready
	$(BIN)/python -m pytest -n auto -m slow $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
