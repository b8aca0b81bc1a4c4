# Everything a person types. `make serve` and `make test` need python3 (3.11 or newer) with venv, and nothing else.
#
#   make serve [PORT=8000] [DATA=folder]   the service on this machine; Ctrl-C stops it
#   make test      the suite                make check   ruff, mypy, import-linter
#   make bench     speed, memory, load      make zoo     train the built-in models again

PYTHON ?= python3
PORT ?= 8000
DATA ?=
ROOMS := halftone service jobs workers pipelines quant zoo bench
VENV := .venv
BIN := $(VENV)/bin

# Stamps say that an installation is whole and newer than what it was made from; they lie in the environment they describe.
SERVE_READY := $(VENV)/.installed-serve
DEV_READY := $(VENV)/.installed-dev
# pip's constraints as a variable reach the build of our own package too.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install \
	--quiet --progress-bar off

.PHONY: help serve test check bench zoo install clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

serve: $(SERVE_READY)
	@exec $(BIN)/python -m halftone serve --port '$(PORT)' $(if $(DATA),--data '$(DATA)')

install: $(DEV_READY)

test: $(DEV_READY)
	@exec $(BIN)/python -m pytest

check: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(ROOMS) tests
	$(BIN)/lint-imports

bench: $(DEV_READY)
	@exec $(BIN)/python -m bench

zoo: $(DEV_READY)
	$(BIN)/python -m zoo.train shapes-unet
	$(BIN)/python -m zoo.train shapes-dit
	$(BIN)/python -m zoo.train shapes-video

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Halftone needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "'$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(SERVE_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), once; this takes a minute or a few ..."
	@$(PIP_INSTALL) -e .
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) with the tools for tests, once; this takes a minute or a few ..."
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $(SERVE_READY) $@
