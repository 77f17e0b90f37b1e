# Everything a fresh clone needs: Python 3.11 or newer with pip, and make. Type `make` for the list of targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /\1\t/p' Makefile | expand -t 10

setup: $(STAMP) ## make .venv with every extra (quick when nothing has changed)

# The stamp holds a checksum of what decides the environment, so that a changed file installs again and a touched one does not.
$(STAMP): FORCE
	@sum="$$(cat pyproject.toml constraints.txt | cksum)"; \
	if [ "$$(cat $@ 2>/dev/null)" = "$$sum" ]; then exit 0; fi; set -e; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	echo "Setting up $(VENV) (about a minute; torch is large) ..."; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[hf,test]'; \
	echo "$$sum" > $@; echo "Ready: $(BIN)/mlpmixer --help"

.PHONY: FORCE
FORCE:

demo: setup ## train on the digits (under a minute), evaluate on test, predict a few images
	@if [ -f $(DEMO)/summary.json ]; then \
	  echo "$(DEMO) is already trained; to train again: rm -r $(DEMO) && make demo"; \
	else \
	  if [ -d $(DEMO) ]; then $(BIN)/mlpmixer train --resume $(DEMO); else $(BIN)/mlpmixer train digits --out $(DEMO); fi; \
	fi
	@echo; echo "== mlpmixer evaluate $(DEMO) digits"; $(BIN)/mlpmixer evaluate $(DEMO) digits
	@$(BIN)/python examples/save_images.py digits $(DEMO)/images 5
	@echo; echo "== mlpmixer predict $(DEMO) $(DEMO)/images"; $(BIN)/mlpmixer predict $(DEMO) $(DEMO)/images --top-k 3
	@echo; echo "The report of the run: $(DEMO)/report.html"

test: setup ## run the tests (no network, no GPU; eight minutes of two cores)
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

lint: setup ## check style with ruff
	@$(BIN)/ruff check .

types: setup ## check types with mypy
	@$(BIN)/mypy

clean: ## remove .venv and caches; runs/ stays
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis; find src tests -name __pycache__ -prune -exec rm -rf {} +
