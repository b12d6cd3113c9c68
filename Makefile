# Everything sets itself up: Python 3.11 or newer, make, and the package index are all it needs.

# `make test PYTHON=python3.12` has a folder of its own, .venv-python3.12, beside .venv.
VENV := $(if $(filter undefined,$(origin PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; \
	done)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow lint bench gpu-wheels clean

demo: $(VENV)/.base  ## train a VAE and IWAEs on digits, compare them, write a report
	$(VENV)/bin/iwae demo

test: $(VENV)/.dev  ## the default suite
	$(VENV)/bin/python -m pytest -n auto

test-slow: $(VENV)/.dev  ## what the default suite leaves out
	XLA_FLAGS= $(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.bench  ## our training step and evaluation against others', as ratios, in docs/performance.md
	$(VENV)/bin/python -m benchmarks

gpu-wheels: $(VENV)/.base  ## what a GPU machine without a package index lacks, in build/gpu-wheels
	$(VENV)/bin/python -m benchmarks.gpu.wheels

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "iwae needs Python 3.11 or newer; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[data,report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.base
	$(PIP) -e '.[bench]'
	@touch $@

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache
