# Two commands on a fresh machine with Python 3.11 and git: `make demo` and `make test`. Both do their own set-up.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# PyPI's torch for Linux brings CUDA (gigabytes). For the small CPU build: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help setup demo serve web test test-slow test-arm native bench lint clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "Variables: PYTHON=python3.11  VENV=.venv  TORCH_INDEX=https://download.pytorch.org/whl/cpu (small CPU build of torch)"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "rf-export needs Python 3.11 or newer, and $(PYTHON) is older or missing; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[export,ort,tensorrt-rtx,dev]'
	@touch $@

setup: $(STAMP) ## Make the environment in .venv

demo: $(STAMP) ## Export the reference checkpoint, build its engine, draw, and write demo/report.html
	$(PY) examples/demo.py --output demo

serve: $(STAMP) ## Open a page that draws with the demo's bundle; exports it first where it is missing
	@test -d demo/bundle || $(VENV)/bin/rf-export export examples/reference/checkpoint -o demo/bundle
	$(VENV)/bin/rf-export serve demo/bundle --open

web: $(STAMP) ## Open the same page as a site that draws in the browser, without a server of ours: demo/site
	@test -d demo/bundle || $(VENV)/bin/rf-export export examples/reference/checkpoint -o demo/bundle
	$(VENV)/bin/rf-export export-web demo/bundle -o demo/site --force --open

lint: $(STAMP) ## ruff (rules and format), mypy strict, import rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	PYTHONPATH=. $(VENV)/bin/lint-imports

test: lint ## Everything but the slow tests, a process for each core (at most four)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP) ## The slow tests: bundles beyond 2 GB, more kills (16 GiB of memory, 12 GiB of disk, minutes)
	$(PY) -m pytest -m slow

test-arm: $(STAMP) ## Draw on an emulated Jetson Orin's CPU and compare; Debian or Ubuntu, downloads 155 MB (BUNDLE=demo/bundle)
	PYTHON=$(abspath $(PY)) tests/arm.sh $(or $(BUNDLE),demo/bundle) build/arm

native: ## Build the native host, librf_runtime, and its examples in build/native (a C++ compiler and CMake)
	cmake -S runtime/native -B build/native
	cmake --build build/native

bench: $(STAMP) ## Measure three model sizes against eager PyTorch and torch.compile, and write docs/benchmarks-cpu.md (half an hour)
	$(PY) benchmarks/cpu.py reference base-90m qwen3-0.6b --stage-seconds 60 --write docs/benchmarks-cpu.md

clean: ## Remove what the other targets made
	rm -rf $(VENV) build demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
