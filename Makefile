# From a bare machine (Python 3.11 or newer, make, pip) to a running engine: make demo
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CHECKPOINT := examples/checkpoints/pico-python
ENGINE := build/demo/pico-python.llmc
# Plugins are named, because pytest else rewrites the assertions of every module of each installed one, such as hypothesis.
PYTEST := $(BIN)/python -m pytest -q --disable-plugin-autoload -p xdist -p hypothesispytest

# Hundreds of processes of the tests would else compile all modules of llmc each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv demo hooks quick test soak torture golden families scripts rehearsal sizes lint format clean

venv: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("llmc needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[build]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[cuda,cuda-build,dev]'
	touch $@ $(VENV)/.build

demo: $(VENV)/.build
	mkdir -p $(dir $(ENGINE))
	$(BIN)/llmc build $(CHECKPOINT) -o $(ENGINE) --quantize int8
	$(BIN)/llmc run $(ENGINE) 'def parse_args(' --max-tokens 96 --temperature 0.4 --seed 1
	@echo
	@echo "Go on with:"
	@echo "  . $(BIN)/activate"
	@echo "  llmc run examples/checkpoints/pico-chat --chat 'how do I build an engine?'"
	@echo "  llmc run examples/checkpoints/pico-chat --chat"
	@echo "  llmc inspect $(ENGINE)"
	@echo "  llmc -h"

# `git commit` then runs .pre-commit-config.yaml, whose hooks are tools of .venv.
hooks: $(VENV)/.dev
	$(BIN)/pre-commit install

# In the order of the files: so the many small tests of tests/unit fill both cores at the end.
test: $(VENV)/.dev
	$(PYTEST) -n auto --dist loadfile --no-loadscope-reorder

# What is too long for every change, about half an hour; the result goes to benchmarks/results/soak.json.
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py

# Kills, a crowd, damaged input and strange surroundings for 20 minutes on two free cores; benchmarks/results/torture.json.
# Without a wheel of atheris for this Python its part says that it was skipped.
torture: $(VENV)/.dev
	-$(PIP) -e '.[torture]'
	$(BIN)/python benchmarks/torture.py

quick: $(VENV)/.dev
	$(PYTEST) -n auto --dist loadfile --no-loadscope-reorder tests/test_tiny.py tests/unit

golden: $(VENV)/.dev
	$(PYTEST) tests/golden/test_golden.py tests/kernels/test_figures.py --update-golden

families: $(VENV)/.dev
	$(BIN)/python -m llmc.compiler.coverage.document

scripts: $(VENV)/.dev
	$(PYTEST) tests/scripts/test_scripts.py --update-golden

# The three calls of benchmarks/gpu.sh with all that is carried, over a driver whose kernels compute nothing: results that
# are held against numbers are wrong, and all else must be there.
rehearsal: $(VENV)/.dev
	mkdir -p build/rehearsal
	cc -shared -fPIC -O1 -w -DMOST_MOVED=65536 -o build/rehearsal/libcuda.so.1 tests/support/fakes/libcuda.c -ldl
	$(BIN)/python benchmarks/gpu_pack.py
	for call in first speed tuned; do \
	  LD_LIBRARY_PATH=build/rehearsal PYTHON=$(BIN)/python OUT=build/rehearsal/results WORK=build/rehearsal/work \
	    sh -c "time benchmarks/gpu.sh $$call"; done || true

sizes:
	@PYTHONPATH=tests $(PYTHON) -m repo.sizes

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types
	ln -sfn ../.. build/types/llmc
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
