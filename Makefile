# One command for each thing a newcomer wants. `make demo` first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test conformance bench lint format clean

setup: $(STAMP)

# torch comes first and pinned, so that a machine without a GPU gets one build of it and no other.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[train,eval,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/vip-llava ask examples/photos/demo.jpg "What is <region:1>?" --box 100,80,260,300 --save demo.png

test: setup lint
	$(BIN)/python -m pytest -n 2

conformance: setup
	$(BIN)/python -m pytest tests/conformance -m conformance -n 2

bench: setup
	$(BIN)/python benchmarks/drawing.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache demo.png
