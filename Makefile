# make demo: the whole recipe on synthetic hands. make test: the suite. Both make .venv from nothing but Python 3.11.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python

# glibc hands large blocks back to the system at every step and takes them again; keeping them is faster on a CPU.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export MALLOC_TOP_PAD_ := 268435456

.PHONY: demo test lint clean

demo: $(VENV)/.requirements
	bash demo.sh $(PY)

test: $(VENV)/.requirements-dev
	$(PY) -m pytest

lint: $(VENV)/.requirements-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf checkpoints runs output demo data/demo config/prune_*.cfg .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.requirements: requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@

$(VENV)/.requirements-dev: requirements-dev.txt $(VENV)/.requirements
	$(PY) -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	touch $@
