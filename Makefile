# make demo | make test | make check, from a bare clone with Python 3.11+ and make.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE := $(wildcard src/kunlun/ops/native/*.cpp src/kunlun/ops/native/*.h) \
  src/kunlun/ops/native/build.py hatch_build.py

.PHONY: help install demo test check docs

help:
	@echo "make demo    install into .venv, then train the embedded example"
	@echo "make test    install into .venv, then run the tests"
	@echo "make check   formatting, lint, types, import directions"
	@echo "make docs    run the README's and the docs' commands again and paste what they print"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Kunlun needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing the pinned dependencies into $(VENV) (once; PyTorch is large)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@$(BIN)/python src/kunlun/ops/native/build.py
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/kunlun demo

# One thread a worker: two workers that each start a thread per core slow one another down.
test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

check: $(INSTALLED)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_imports.py

docs: $(INSTALLED)
	@$(BIN)/python docs/refresh.py README.md docs/cli.md docs/models.md docs/compare.md docs/results.md docs/benchmarks.md
