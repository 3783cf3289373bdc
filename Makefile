# Everything runs inside .venv, which `make setup` builds and every other target asks for first.

PYTHON ?= python3
PROFILE ?= cpu
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup developers test check figures reproduce lab gpu gpu-cifar10

help:
	@echo "make setup                     build .venv with what figures need (PYTHON=python3); other targets do it first"
	@echo "make test                      lint, format check and the tests that take seconds each"
	@echo "make check                     the other tests: every notebook in the smoke profile, long runs, wheels"
	@echo "make figures                   every figure, from the archive of recorded runs (PROFILE=cpu|smoke, JOBS=$(JOBS))"
	@echo "make reproduce                 every figure from nothing: hours of training, compared with the committed ones"
	@echo "make lab                       the notebooks in JupyterLab"
	@echo "make gpu                       what a GPU does, in eight minutes: build/gpu/gpu.md (DEVICE=cpu TINY=1: a rehearsal)"
	@echo "make gpu-cifar10               train ten minutes on CIFAR-10, whose files lie at data/cifar10, and probe (aim: 85 % k-NN)"

setup: .venv/.ready
developers: .venv/.developers

# The stamps are written last: an interrupted or outdated environment is completed by the next make.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("SimDINO needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name a newer one, as in make setup PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[batch]'
	@touch $@

.venv/.developers: .venv/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal --durations 10

test: developers
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(PYTEST) -m "not slow"

check: developers
	$(PYTEST) -m slow

figures: setup
	@$(BIN)/simdino figures --profile $(PROFILE) --jobs $(JOBS)

reproduce: setup
	@$(BIN)/simdino figures --profile $(PROFILE) --jobs $(JOBS) --from-nothing

lab: setup
	$(BIN)/python -m jupyter lab notebooks

DEVICE ?= cuda

gpu: setup
	$(BIN)/python -m benchmarks.gpu --device $(DEVICE) $(if $(TINY),--tiny)

# 12,000 of the profile's 39,000 steps: ten minutes at twenty steps a second
gpu-cifar10: setup
	$(BIN)/simdino train simdino@optim.steps=12000 --profile gpu --device $(DEVICE)
	$(BIN)/simdino probe "$$(ls -td runs/simdino@optim.steps=12000*-s0-* | head -1)" --tasks knn
