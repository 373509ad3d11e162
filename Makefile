# make demo | test | lint | bench | bench-peers | clean: each does its own set-up in .venv and repeats only what changed.
#
#   PYTHON=python3.12   another interpreter (3.10 or newer)
#   TORCH=torch==2.13.0 what to install when the interpreter has no torch of its own
#   EPOCHS=15           how long the demo trains
#   PYTEST_ARGS=...     passed on to pytest, e.g. PYTEST_ARGS="-k units"
#   REPORT=FILE.md      make bench-peers writes table and picture there

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= torch==2.13.0
EPOCHS ?= 15
PYTEST_ARGS ?=
REPORT ?=

ROOT := $(CURDIR)
BIN := $(ROOT)/.venv/bin
STAMPS := .venv/stamps
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
KEEP := --constraint .venv/constraints.txt
SOURCES := $(shell find revedge export devices -type f \( -name '*.py' -o -name '*.c' -o -name '*.h' -o -name '*.toml' -o -name py.typed \))
# A working folder without a `revedge` in it, so that only the installed one can be imported.
AWAY := build/away
# Both: a checkout's folder on the path would hide the wheel that is under test.
INSTALLED := cd $(AWAY) && PYTHONSAFEPATH=1 PYTHONPATH= REVEDGE_TEST_INSTALLED=1

.PHONY: help demo test lint bench bench-peers clean FORCE

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

# --- set-up ----------------------------------------------------------------------------------------------------------

$(STAMPS)/venv: # a torch that the interpreter already has (a Jetson's own build) is kept and never replaced
	@$(PYTHON) .ci/make_venv.py
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv # before anything else, so that nothing chooses another one
	@if [ -s .venv/constraints.txt ]; then echo "setup: keeping $$(grep ^torch .venv/constraints.txt)"; else \
	  echo "setup: installing $(TORCH) into .venv (minutes, once)"; \
	  $(PIP) install "$(TORCH)" || { echo "setup: $(TORCH) could not be installed; name another with TORCH=..." >&2; exit 1; }; \
	  $(BIN)/python .ci/make_venv.py --pin-torch; fi
	@touch $@

$(STAMPS)/files: FORCE # notices a deleted source, which no time stamp shows
	@mkdir -p .venv/stamps && printf '%s\n' $(sort $(SOURCES)) > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(STAMPS)/wheel: $(SOURCES) pyproject.toml README.md LICENSE $(STAMPS)/venv $(STAMPS)/files
	@echo "setup: building the wheel"
	@rm -rf build/lib* build/bdist.* build/temp.* dist && mkdir -p dist $(AWAY)
	@$(PIP) wheel --no-deps --wheel-dir dist . || { echo "setup: the wheel did not build" >&2; exit 1; }
	@touch $@

define install # 1: extras, 2: stamp. Packages once per pyproject.toml, our own wheel whenever it is new
	@if [ pyproject.toml -nt $(2) ] || [ ! -e $(2) ]; then echo "setup: installing revedge[$(1)] and what it needs"; \
	  $(PIP) install $(KEEP) "$$(ls $(ROOT)/dist/revedge-*.whl)[$(1)]" || { echo "setup: the packages of revedge[$(1)] could not be installed" >&2; exit 1; }; fi
	@$(PIP) install $(KEEP) --no-deps --force-reinstall dist/revedge-*.whl
	@touch $(2)
endef

$(STAMPS)/run: $(STAMPS)/torch $(STAMPS)/wheel
	$(call install,all,$@)

$(STAMPS)/dev: $(STAMPS)/torch $(STAMPS)/wheel
	$(call install,dev,$@)

# Libraries that tests compare with, and the reader of a camera's recordings. Without what they ask for: torchvision and
# torchaudio would come, and nothing reads them. Where one cannot be had its tests are skipped, and the next run tries
# again.
$(STAMPS)/peers: $(STAMPS)/torch Makefile
	@rm -f $@ .venv/peers.log; for each in "spikingjelly==2.0.0 loguru" "snntorch==1.0.0" "aedat==2.3.0 --only-binary=aedat"; do \
	  $(PIP) --retries 0 --timeout 15 install --no-deps $$each 2>> .venv/peers.log || { touch $@.not; \
	  echo "setup: $${each%% *} cannot be had here (why: .venv/peers.log); the tests that need it will be skipped"; }; done
	@if [ -e $@.not ]; then rm $@.not; else touch $@; fi

# --- what people type ------------------------------------------------------------------------------------------------

demo: $(STAMPS)/run ## plan, train, export and run a network on the built-in digits recordings
	@REVEDGE=$(BIN)/revedge EPOCHS=$(EPOCHS) bash .ci/demo

test: $(STAMPS)/dev $(STAMPS)/peers ## run the whole test suite against the built wheel
	@mkdir -p $(AWAY)
	@$(INSTALLED) $(BIN)/python -m pytest -c $(ROOT)/pyproject.toml --rootdir $(ROOT) -q $(PYTEST_ARGS) $(ROOT)/tests

lint: $(STAMPS)/dev ## ruff, mypy --strict and pyright
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . || { echo "lint: ruff is not content; try: .venv/bin/ruff check --fix . && .venv/bin/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMPS)/dev ## run every benchmark once, at sizes that end within minutes
	@$(BIN)/python benchmarks/run_all.py

bench-peers: $(STAMPS)/run ## measure revedge beside SpikingJelly, if that is in .venv or on PYTHONPATH
	@$(BIN)/python benchmarks/bench_peers.py $(if $(REPORT),--report $(REPORT))

clean: ## remove what the other targets made, except your runs/
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -f revedge/kernels/_*.so
