# make train: install and see a pole learn to stand.  make test: run the tests.  Both set up .venv by themselves.
# make test-slow: the tests that are left out there because they take long.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# On a machine with a GPU: make train TORCH="torch" (or the wheel that fits your CUDA, see pytorch.org).
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST_ARGS ?=
SOAK_ARGS ?=
ISAACLAB_VENV ?= .venv-isaaclab
MJLAB_VENV ?= .venv-mjlab

.PHONY: train test test-slow test-triton test-isaaclab test-mjlab soak lint type format commit-checks benchmark docs docs-serve clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
	$(PIP) install -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -e ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) install -e ".[docs]"
	touch $@

train: $(VENV)/installed
	$(BIN)/python scripts/first_run.py

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(PYTEST_ARGS)

# Isaac Lab without Isaac Sim, on the CPU, in an environment of its own: 2.4 GB. The first start compiles for minutes.
# No package brings others: isaaclab asks for a CUDA torch, which is gigabytes. Where pip finds no other one:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test-isaaclab TORCH="torch==2.13.0+cpu"
$(ISAACLAB_VENV)/installed: tests/isaaclab/requirements.txt
	$(PYTHON) -m venv $(ISAACLAB_VENV)
	$(ISAACLAB_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps "$(TORCH)"
	$(ISAACLAB_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --ignore-requires-python \
	    -r tests/isaaclab/requirements.txt
	$(ISAACLAB_VENV)/bin/python -c "import torch, isaaclab"
	touch $@

test-isaaclab: $(ISAACLAB_VENV)/installed
	OMP_NUM_THREADS=1 PYTHONPATH=. $(ISAACLAB_VENV)/bin/python -m pytest tests/isaaclab $(PYTEST_ARGS)

# mjlab, likewise: 2.3 GB.
$(MJLAB_VENV)/installed: tests/mjlab/requirements.txt
	$(PYTHON) -m venv $(MJLAB_VENV)
	$(MJLAB_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps "$(TORCH)"
	$(MJLAB_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r tests/mjlab/requirements.txt
	$(MJLAB_VENV)/bin/python -c "import torch, mjlab"
	touch $@

test-mjlab: $(MJLAB_VENV)/installed
	OMP_NUM_THREADS=1 PYTHONPATH=. $(MJLAB_VENV)/bin/python -m pytest tests/mjlab $(PYTEST_ARGS)

# The GPU kernels in Triton's interpreter, which runs on a CPU. Triton is 290 MB; torch's wheels for CUDA bring it.
$(VENV)/installed-triton: tests/triton/requirements.txt $(VENV)/installed-dev
	$(PIP) install --no-deps -r tests/triton/requirements.txt
	touch $@

test-triton: $(VENV)/installed-triton
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/triton $(PYTEST_ARGS)

# About an hour: processes that are killed while they train, save and search, and a long training. SOAK_ARGS="--minutes 5"
soak: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability.soak $(SOAK_ARGS)

# The site, into build/site. A broken link or a missing piece of code is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

docs-serve: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/installed-dev
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

commit-checks: format type lint

benchmark: $(VENV)/installed-dev
	$(BIN)/python scripts/benchmark.py

clean:
	rm -rf $(VENV) $(ISAACLAB_VENV) $(MJLAB_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
