# make book: install, run every chapter with the quick profile, render _build/html.   make test: the whole test suite.
# make site: render _build/site/html with the committed outputs on real recordings.   make study: run all of it on real recordings.
VENV    ?= .venv
PYTHON  ?= python3
PROFILE ?= quick
ARGS    ?=
MINUTES ?=
WORKERS ?= 2
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check --no-input

# Else each of the many processes of a book or a test run would compile torch anew: what is imported first is compiled for the next.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help book site study test lint clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make book    install what is missing, run every chapter with the $(PROFILE) profile, render _build/html"
	@echo "make site    render _build/site/html from the sources and the outputs in results/, without running anything"
	@echo "make study   run what is left of the ptbxl profile, keep records and pages in results/ptbxl  (MINUTES=120 stops after two hours)"
	@echo "make test    install what is missing, run the whole test suite      (ARGS='-k params' picks some)"
	@echo "make lint    ruff: errors and formatting"
	@echo "make clean   remove _build and _runs; make distclean removes $(VENV) as well"
	@echo "variables: PROFILE=quick  VENV=.venv  PYTHON=python3  WORKERS=2 (of pytest)  ARGS=  MINUTES="

book: $(VENV)/.book-installed
	$(BIN)/python -m crema_lib book --profile $(PROFILE) $(ARGS)

site: $(VENV)/.book-installed
	$(BIN)/python -m crema_lib site $(ARGS)

study: $(VENV)/.book-installed
	$(BIN)/python -m crema_lib study $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

# The whole suite begins with the book, alone: it uses every core, and beside other tests both would take much longer.
test: $(VENV)/.test-installed
ifeq ($(ARGS),)
	rm -rf _build/tested
	$(BIN)/python -m crema_lib book --profile quick --out _build/tested -p out=_build/tested/runs
	CREMA_BUILT=_build/tested $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
else
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
endif

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf _build _runs

distclean: clean
	rm -rf $(VENV) crema_lib.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) could not create $(VENV) (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }

# One stamp each: pip runs again only when what is asked for changes.
$(VENV)/.book-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[book]'
	@touch $@

$(VENV)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[book,dev]'
	@touch $@ $(VENV)/.book-installed
