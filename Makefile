# Sets up an environment and runs everything a newcomer needs. `make` lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

TASK ?= cls
TORCH ?= torch==2.11.0 torchvision==0.26.0
# FORKS=1: the maintained forks of the OpenMMLab libraries, in an environment of their own.
ifdef FORKS
  OPENMMLAB := forks.txt
  MMCV_NAME := onedl-mmcv
  MMCV ?= 2.3.6
  BUILD_TOO := 'setuptools>=77'
else
  OPENMMLAB := mminstall.txt
  MMCV_NAME := mmcv
  MMCV ?= 2.1.0
endif

# Which Python: PYTHON, else the active environment (not conda's base), else .venv.
ifndef PYTHON
  ifdef VIRTUAL_ENV
    PYTHON := $(VIRTUAL_ENV)/bin/python
  else ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
    PYTHON := $(CONDA_PREFIX)/bin/python
  endif
endif
ifdef PYTHON
  PY := $(or $(shell command -v $(PYTHON)),$(PYTHON))
  STAMPS := build/setup/$(shell echo "$(PY)" | cksum | cut -d' ' -f1)
else
  PY := .venv/bin/python
  STAMPS := .venv/setup
endif
PIP := $(PY) -m pip --disable-pip-version-check
SAY := @printf '\033[1m==> %s\033[0m\n'

CSRC := $(shell find ops -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
NATIVE := $(CSRC) $(shell find tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu')
CLANG_FORMAT := $(PY) -c 'from clang_format import clang_format; clang_format()'

# What tests share that takes long to make is made once: see pytest_itemcollected in tests.
IN_PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadgroup

.PHONY: help
help: ## this list
	@echo "usage: make TARGET"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 17
	@echo
	@echo "Every target sets up what it needs first; nothing is done twice. Settings:"
	@echo "  PYTHON=...   use this Python's environment; default: the active one, else .venv,"
	@echo "               made with the first of python3.11, 3.12, 3.10 and python3 that fits"
	@echo "  TORCH='...'  what to install where torch is missing (now: $(TORCH))"
	@echo "  FORKS=1      the maintained forks of the OpenMMLab libraries (docs/start/install.md)"
	@echo "  MMVSSM_WITH_OPS=0  leave the native ops out; PyTorch does their work"

.PHONY: setup
setup: $(STAMPS)/ops$(MMVSSM_WITH_OPS) ## the environment: torch, mmcv, the three libraries, this package with its ops

.PHONY: demo
demo: setup ## train and test a small VMamba on real digits: make demo [TASK=cls|det|seg]
	$(SAY) "demo: $(TASK)"
	@$(PY) tools/demo.py $(TASK)

.PHONY: test
test: lint ## lint, then the default tests
	$(SAY) "tests"
	@$(PY) -m pytest $(IN_PARALLEL)

.PHONY: test-all
test-all: lint ## lint, then all tests, the slow ones too
	$(SAY) "all tests"
	@$(PY) -m pytest $(IN_PARALLEL) -m ''

# The ops in a copy of the package (of links), with every access to memory checked. libasan must
# be loaded first, and Python and torch do not free all they allocate.
SANITIZED := build/sanitize
.PHONY: sanitize
sanitize: setup ## the CPU ops under AddressSanitizer and UndefinedBehaviorSanitizer: tests, 10,000 wrong calls
	$(SAY) "ops with sanitizers (a quarter of an hour)"
	@MMVSSM_SANITIZE=1 $(PY) setup.py --quiet build_ext \
	  --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	@for part in mmvssm/* mmvssm/.mim; do case $$part in *.so | */__pycache__) ;; *) \
	  ln -sfn "$(CURDIR)/$$part" $(SANITIZED)/$$part;; esac; done
	$(SAY) "tests with sanitizers"
	@LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(PY) -m pytest -o pythonpath="$(SANITIZED) tests" -p no:cacheprovider -s -m '' \
	  -k "not compiles and not opcheck and not many" \
	  tests/ops tests/test_malformed.py

.PHONY: lint
lint: setup ## ruff, mypy and clang-format: rules, types and format
	$(SAY) "lint"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(CLANG_FORMAT) --dry-run --Werror $(NATIVE)

.PHONY: format
format: setup ## ruff and clang-format: format the code, and fix what can be fixed
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
	@$(CLANG_FORMAT) -i $(NATIVE)

.PHONY: benchmark
benchmark: setup ## time ops and models on this machine
	$(SAY) "benchmarks"
	@$(PY) benchmarks/run.py --out work_dirs/benchmark.json

.PHONY: docs
docs: setup ## the documentation site, in build/docs
	$(SAY) "documentation"
	@$(PY) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html, or: make docs-serve"

.PHONY: docs-serve
docs-serve: docs ## build the site and serve it on http://127.0.0.1:8000
	@$(PY) -m http.server --bind 127.0.0.1 --directory build/docs 8000

.PHONY: matrix
matrix: setup ## tests and demo in other environments, half an hour each: make matrix [ROWS='forks ...']
	$(SAY) "matrix"
	@$(PY) .dev/matrix.py $(ROWS)

.PHONY: release-check
release-check: setup ## before a release: version, changelog, archives, an offline install
	$(SAY) "release check"
	@$(PY) .dev/release_check.py

.PHONY: clean
clean: ## remove builds and caches; environment, data and results stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .venv/setup/ops*
	find mmvssm -name '*.so' -delete
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# The environment, step by step. A stamp is written when its step is done, so an
# interrupted set-up goes on with the step that was cut off.

$(STAMPS)/python:
ifndef PYTHON
	$(SAY) "virtual environment .venv"
	@fits='import ensurepip, os, sys, sysconfig, venv; \
	  header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	  sys.exit(not ((3, 10) <= sys.version_info[:2] < (3, 14) and os.path.exists(header)))'; \
	for python in python3.11 python3.12 python3.10 python3; do \
	  if $$python -c "$$fits" 2>/dev/null; then base=$$python; break; fi; \
	done; \
	if [ -z "$${base:-}" ]; then \
	  echo "No Python fits: one of 3.10 to 3.13 is needed, with its venv module and headers" \
	    "(on Debian: python3, python3-venv, python3-dev). Or name one: make PYTHON=..." >&2; \
	  exit 1; \
	fi; \
	echo "made with $$base, $$($$base -V)"; \
	$$base -m venv .venv
endif
	@$(PY) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "$(PY) is not a Python of 3.10 to 3.13" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { \
	  echo "No C++ compiler: install g++ (mmcv's ops and ours are compiled)" >&2; exit 1; }
	@mkdir -p $(@D) && touch $@

$(STAMPS)/build: requirements/build.txt $(STAMPS)/python
	$(SAY) "build tools"
	@$(PIP) install --quiet -r $< $(BUILD_TOO)
	@touch $@

$(STAMPS)/torch: $(STAMPS)/build
	$(SAY) "torch"
	@$(PY) -c 'import torch, torchvision; v = torch.__version__; \
	  assert tuple(map(int, v.split(".")[:2])) >= (2, 1); print("torch", v, "is there")' \
	  2>/dev/null || { \
	  echo "downloading $(TORCH): 2 to 3 GB with its CUDA libraries"; \
	  $(PIP) install $(TORCH); }
	@touch $@

$(STAMPS)/mmcv: .dev/install_mmcv.py $(STAMPS)/torch
	$(SAY) "mmcv"
	@$(PY) .dev/install_mmcv.py --distribution $(MMCV_NAME) --version $(MMCV) --work-dir build/mmcv
	@touch $@

# mmcv and MMEngine ask for opencv-python, which needs libGL. Where that is missing the
# headless build, laid last, takes over the folder cv2 that the two share.
LIBRARIES := $(addprefix requirements/,runtime.txt $(OPENMMLAB) tests.txt demo.txt export.txt docs.txt)
OLD_TORCH = $(PY) -c 'import torch; v = torch.__version__.split("."); \
  print("-c requirements/old-torch.txt" * ((int(v[0]), int(v[1])) < (2, 3)))'
$(STAMPS)/libraries: $(LIBRARIES) requirements/old-torch.txt $(STAMPS)/mmcv
	$(SAY) "mmpretrain, mmdet, mmsegmentation, and what tests, demo, docs and export need (a minute)"
	@$(PIP) install --quiet $(addprefix -r ,$(LIBRARIES)) $$($(OLD_TORCH))
	@$(PY) -c 'import cv2' 2>/dev/null || \
	  $(PIP) install --quiet --force-reinstall --no-deps opencv-python-headless $$($(OLD_TORCH))
	@$(PY) -c 'import cv2, mmdet, mmpretrain, mmseg'
	@touch $@

$(STAMPS)/package: setup.py pyproject.toml $(STAMPS)/libraries
	$(SAY) "this package"
	@MMVSSM_WITH_OPS=0 $(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(STAMPS)/ops$(MMVSSM_WITH_OPS): ops/build.py $(CSRC) $(STAMPS)/package
	$(SAY) "native ops (a minute or two)"
	@rm -f $(STAMPS)/ops* && find mmvssm -name '*.so' -delete
	@$(PY) setup.py --quiet build_ext --inplace | sed -E 's#^(\[[0-9/]+\]) .*/([^/ ]+) -o .*#  \1 \2#'
	@$(PY) -m mmvssm.ops
	@touch $@
