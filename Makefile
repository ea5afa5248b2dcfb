# Two commands for a fresh machine: `make demo` and `make test`. Each creates its environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Of its own: what the documents compare with (PyTorch, lm-eval) is no part of the tests' environment.
DOCS_VENV ?= .venv_docs

.PHONY: demo test lint docs-check

demo: $(VENV)/demo.installed
	$(BIN)/stagjax demo --workdir=demo

test: $(VENV)/test.installed
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

docs-check: $(DOCS_VENV)/docs.installed
	$(DOCS_VENV)/bin/python tests/docs_check.py

lint: $(VENV)/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamp files say which extras are installed, and are older than a setup.py that has changed since.
$(VENV)/demo.installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[plots]'
	touch $@

$(VENV)/test.installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[data,gcs,plots,test,tpu]'
	touch $@

$(DOCS_VENV)/docs.installed: setup.py
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --editable '.[benchmarks,data,gcs,plots,test,tpu]'
	touch $@
