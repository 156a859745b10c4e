# Every target is plain pip underneath; the README shows the same lines without make.
PYTHON ?= python3
VENV ?= .venv

.PHONY: help quickstart test test-slow lint

help:
	@echo "make quickstart   pre-train on film reviews, adapt to sentiment, compare, write a report"
	@echo "make test         the fast test suite (2 workers)"
	@echo "make test-slow    the tests that take minutes"
	@echo "make lint         formatting, lint, types, the order of the rooms"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

quickstart: $(VENV)/bin/python
	$(VENV)/bin/python -m pip install ./zoo ".[quickstart]"
	$(VENV)/bin/bedplate quickstart

# One thread a worker: torch would otherwise start one a core in each of them.
test: $(VENV)/bin/python
	$(VENV)/bin/python -m pip install ./zoo -e ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2

test-slow: $(VENV)/bin/python
	$(VENV)/bin/python -m pip install ./zoo -e ".[dev]"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m slow

lint: $(VENV)/bin/python
	$(VENV)/bin/python -m pip install ./zoo -e ".[dev]"
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
