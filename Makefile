# `make demo`, `make fast`, `make test` and `make sanitize` do all the set-up. Python 3.11 or newer is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CPU machines everywhere but CI may prefer another torch build; constraints.txt pins what CI uses.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo fast test fuzz fuzz-arm sanitize clean

demo: $(VENV)/.demo
	$(BIN)/deploypruner demo --overwrite

# A file at a time for each worker, and one thread each: files may share what they compile, and spinning threads of
# several workers would take each other's cores.
PYTEST := OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# What a change breaks most often, in under 90 s on two idle cores: no training, no build, no compiling of kernels.
fast: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(PYTEST) -m "not slow"

# The kernels on every target that this CPU runs, against the oracle to the bit: `make fuzz CASES=100000`. Needs cmake.
CASES ?= 2000
FUZZERS := fuzz fuzz_gates fuzz_border fuzz_linear

fuzz:
	cmake -S kernels/tests -B build/fuzz
	cmake --build build/fuzz --parallel
	for what in $(FUZZERS); do build/fuzz/$$what 0 $(CASES) || exit 1; done

# The same for Arm, compiled here and emulated: apt install cmake g++-aarch64-linux-gnu qemu-user
fuzz-arm:
	cmake -S kernels/tests -B build/fuzz-arm -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/kernels/aarch64.cmake
	cmake --build build/fuzz-arm --parallel
	for what in $(FUZZERS); do \
	  qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max build/fuzz-arm/$$what 0 $(CASES) || exit 1; done

# The same under the address, undefined-behaviour and thread sanitizers, some hundred cases. Compiles for minutes.
sanitize: $(VENV)/.test
	DEPLOYPRUNER_SANITIZE=1 $(BIN)/pytest tests/test_kernels_fuzz.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: asked for together with the rest, pip may prefer a newer build with gigabytes of CUDA.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP_INSTALL) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP_INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP_INSTALL) --editable '.[test]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo build
