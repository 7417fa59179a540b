# Two commands do all the set-up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: run test test-engines coverage campaign check docs report clean reproduce-quick reproduce-control reproduce-language reproduce-theory

run: $(VENV)/installed
	$(BIN)/python -m experiments.reproduce run

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2
	$(MAKE) --no-print-directory check

coverage: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

# verl needs an older transformers than TRL, hence an environment of its own
test-engines: $(VENV)-trl/installed $(VENV)-verl/installed
	$(VENV)-trl/bin/python -m pytest tests/test_engine_trl.py tests/test_engine_sb3.py tests/test_engine_record.py
	$(VENV)-verl/bin/python -m pytest tests/test_engine_verl.py

$(VENV)-trl/installed: pyproject.toml
	test -x $(VENV)-trl/bin/python || $(PYTHON) -m venv $(VENV)-trl
	$(VENV)-trl/bin/pip install --quiet --editable ".[engines]" pytest
	touch $@

$(VENV)-verl/installed: pyproject.toml
	test -x $(VENV)-verl/bin/python || $(PYTHON) -m venv $(VENV)-verl
	$(VENV)-verl/bin/pip install --quiet --editable . verl==0.9.1 pytest
	touch $@

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
	rm -rf $(VENV) $(VENV)-trl $(VENV)-verl build dist report site
