# Everything a fresh clone needs: Python 3.11 or newer with pip, and make. Type `make` for the list of targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
EVERYTHING := $(VENV)/.everything
DEMO := runs/demo
SHORT := --epochs 40 --lr 3e-3 --optim.muon-lr 5e-3
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all dist lint types docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 10

setup: $(EVERYTHING) ## make .venv with every extra (quick when nothing has changed)

# A stamp holds a checksum of what decides the environment, so that a changed file installs again and a touched one does not.
# What is installed for the tests is enough for the demo, too.
$(CORE): STAMPS := $(CORE)
$(CORE): ENOUGH := $(CORE) $(EVERYTHING)
$(EVERYTHING): EXTRAS := [test]
$(EVERYTHING): STAMPS := $(CORE) $(EVERYTHING)
$(EVERYTHING): ENOUGH := $(EVERYTHING)
$(CORE) $(EVERYTHING): FORCE
	@sum="$$(cat pyproject.toml constraints.txt | cksum)"; \
	if cat $(ENOUGH) 2>/dev/null | grep -qxF "$$sum"; then exit 0; fi; set -e; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	echo "Installing mlpmixer$(EXTRAS) in $(VENV) (torch is large) ..."; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.$(EXTRAS)'; \
	echo "$$sum" | tee $(STAMPS) > /dev/null; echo "Ready: $(BIN)/mlpmixer --help"

.PHONY: FORCE
FORCE:

demo: $(CORE) ## train on the digits (the recipe, cut to 40 epochs), evaluate on test, predict a few images
	@if [ -f $(DEMO)/summary.json ]; then \
	  echo "$(DEMO) is already trained; to train again: rm -r $(DEMO) && make demo"; \
	elif [ -d $(DEMO) ]; then $(BIN)/mlpmixer train --resume $(DEMO); \
	else echo "== mlpmixer train digits $(SHORT) --out $(DEMO)"; $(BIN)/mlpmixer train digits $(SHORT) --out $(DEMO); fi
	@echo; echo "== mlpmixer evaluate $(DEMO) digits"; $(BIN)/mlpmixer evaluate $(DEMO) digits
	@$(BIN)/python examples/save_images.py digits $(DEMO)/images 5
	@echo; echo "== mlpmixer predict $(DEMO) $(DEMO)/images"; $(BIN)/mlpmixer predict $(DEMO) $(DEMO)/images --top-k 3
	@echo; echo "The report of the run: $(DEMO)/report.html"

test: $(EVERYTHING) ## run the tests that need neither network, GPU nor browser
	@$(PYTEST)

test-all: $(EVERYTHING) ## run the tests that are left out of `make test` as well (a GPU, a browser and the network, where there are any)
	@$(PYTEST) -m ''

dist: $(EVERYTHING) ## build the sdist and the wheel into dist/, and try the wheel in a new environment
	@rm -rf dist
	@$(BIN)/python .ci/dist.py

lint: $(EVERYTHING) ## check style with ruff
	@$(BIN)/ruff check .

types: $(EVERYTHING) ## check types with mypy
	@$(BIN)/mypy

docs: $(EVERYTHING) ## build the documentation into site/; a dead link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html; with search: python3 -m http.server --directory site"

clean: ## remove .venv and caches; runs/ stays
	@rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis; find src tests -name __pycache__ -prune -exec rm -rf {} +
