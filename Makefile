# Two commands do all the set-up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: run test coverage campaign check docs report clean reproduce-quick reproduce-control reproduce-language reproduce-theory

run: $(VENV)/installed
	$(BIN)/python -m experiments.reproduce run

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

coverage: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

SEED ?= 1
campaign: $(VENV)/installed
	$(BIN)/python -m tests.campaign --seed $(SEED) --out results/campaign/$(SEED).md

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/prose.py

docs: $(VENV)/installed
	$(BIN)/python -m experiments.pages
	$(BIN)/mkdocs build --strict

RESULTS ?=
reproduce-quick reproduce-control reproduce-language reproduce-theory: reproduce-%: $(VENV)/installed
	$(BIN)/python -m experiments.reproduce $* $(if $(RESULTS),--results $(RESULTS))

report: $(VENV)/installed
	$(BIN)/rgpo-report

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist report site
