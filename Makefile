# Needs python3 (3.11 or newer), pip and make; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test check clean

help:
	@echo "make demo   install into $(VENV), then run the whole path on synthetic slides ($(DEMO)/report.html)"
	@echo "make test   install into $(VENV), then run the test suite"
	@echo "make check  ruff and mypy"
	@echo "make clean  remove $(VENV) and $(DEMO)"

$(READY): pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "pathgen needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,test]"
	@touch $@

demo: $(READY)
	$(BIN)/pathgen demo -o $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO)
