# One command for each thing a newcomer wants: `make demo` first, `make test` before a commit.
# Needs Python 3.11 or newer with pip and venv, and nothing else: no compiler, no GPU.

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$name" && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS := train,eval,serve,web,cluster,dev
# The tested versions; `make setup LATEST=1` takes the newest that the metadata admits instead.
LATEST ?=
PINS   := $(if $(LATEST),--upgrade --upgrade-strategy eager,--constraint constraints.txt)
DEMO   := examples/photos/cat.jpg
BOX    := 100,40,330,250

# The tests share two cores between two processes; more threads in each would only get in the way.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup constraints demo test conformance bench lint format clean

help:
	@echo "make demo         ask about a marked region of a photo (sets everything up first)"
	@echo "make test         all checks and tests, as CI runs them"
	@echo "make conformance  only the comparison with the original's recorded results"
	@echo "make bench        the speed measurements that need no GPU"
	@echo "make lint format  check the style / put it right"
	@echo "make setup clean  make the environment $(VENV) / remove it"
	@echo "make setup LATEST=1  the newest dependencies instead of the tested ones"
	@echo "make constraints  renew constraints.txt: the newest versions, from a new environment"

setup: $(STAMP)

# torch comes first and pinned, so that one build of it serves everything that follows.
ifeq ($(LATEST)$(shell cat $(STAMP) 2>/dev/null),1tested)
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "vip-llava needs Python 3.11 or newer; found none." \
		"Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv;" \
		"on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; torch alone is about 200 MB or more)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet torch==2.13.0
	@$(BIN)/python -m pip install --quiet $(PINS) torch==2.13.0 --editable '.[$(EXTRAS)]'
	@echo $(if $(LATEST),newest,tested) > $(STAMP)

# Run `make test` on the result before committing it.
constraints:
	@$(MAKE) --no-print-directory setup LATEST=1 VENV=.venv-newest
	@{ echo "# The tested versions of everything that \`make setup\` installs. Renew: make constraints"; \
		.venv-newest/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt
	@rm -rf .venv-newest

demo: setup
	$(BIN)/vip-llava ask $(DEMO) "What is <region:1>?" --box $(BOX) --save demo.png

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --durations=20

conformance: setup
	$(TEST_ENV) $(BIN)/python -m pytest tests/conformance -m conformance -n 2

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
