# Needs Python >= 3.10 with venv, and a package registry. The commands that CI runs are these.

PYTHON ?= python3
VENV ?= .venv
# Processes that the tests are spread over, and how: a file stays in one; one that crashes ends the run.
JOBS ?= 2
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# What is installed. TensorRT-RTX is proprietary: EXTRAS=all,dev does without it, and skips its tests.
EXTRAS ?= all,trt-rtx,dev
# More for pip, such as the address of an index with CPU builds of torch.
PIP_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp

.PHONY: help setup demo test test-quick test-arm fuzz damage lint bench bench-speed bench-speed-peers audit docs clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(STAMP)  ## Install everything into .venv; again only when pyproject.toml or constraints.txt changed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "setup: needs Python >= 3.10, found " + sys.version.split()[0])'
	@test -x $(BIN)/python || { echo "setup: creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing ptsr-edge with the extras $(EXTRAS) (2 GB; a few minutes the first time)"
	@case ",$(EXTRAS)," in *,trt-rtx,*) echo "setup: trt-rtx is proprietary, under NVIDIA's Software License Agreement; EXTRAS=all,dev does without it";; esac
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@$(BIN)/python tests/support/face_clips.py > /dev/null || echo "setup: no face clips; the tests that need them are skipped"
	@touch $@

demo: setup  ## Export, judge, profile and report on synthetic data, into out/demo
	@echo "demo: running"
	@$(BIN)/python -m ptsr_edge.demo --out out/demo
	@echo "demo: to go on by hand:  . $(BIN)/activate"

# Hundreds of processes are started: each would compile the package anew where the environment forbids bytecode.
test test-quick: export PYTHONDONTWRITEBYTECODE :=

test: lint  ## All checks: lint, types, tests
	@echo "test: pytest"
	@$(BIN)/python -m pytest $(SPREAD)

test-quick: setup  ## While working: the tests that need no tool chain, server or browser
	@$(BIN)/python -m pytest $(SPREAD) -m "not slow"

test-arm: setup  ## Exported bundles on emulated ARM processors; needs apt. ARM_ARGS=--help lists what may be set
	@echo "test-arm: aarch64 answers against those of this machine"
	@PYTHONPATH=tools $(BIN)/python -m arm $(ARM_ARGS)

damage: setup  ## Kill, fill, soak and strain whole commands, for hours; goes on where it stood. DAMAGE_ARGS="--short" is a minute of it
	@echo "damage: out/damage/found.json"
	@PYTHONPATH=tools:tests/support $(BIN)/python -m damage --material out/damage/material --out out/damage/found.json --resume $(DAMAGE_ARGS)

lint: setup  ## Format, style and types
	@echo "lint: ruff format"
	@$(BIN)/ruff format --check .
	@echo "lint: ruff check"
	@$(BIN)/ruff check .
	@echo "lint: mypy"
	@$(BIN)/mypy -n $(JOBS)

bench: setup  ## Benchmarks of the project's own code
	@echo "bench: pytest-benchmark"
	@$(BIN)/python -m pytest benchmarks --benchmark-only

fuzz: setup  ## Damage what is read, in ever new ways; goes on where it stood. FUZZ_ARGS="--inputs 1000000" over a night
	@echo "fuzz: out/fuzz/found.json"
	@PYTHONPATH=tools:tests/support $(BIN)/python -m fuzz --seeds out/fuzz/seeds --out out/fuzz/found.json --resume $(FUZZ_ARGS)

bench-speed: setup  ## Beside what others give, in one run; SPEED_ARGS=--help lists what may be set
	@echo "bench-speed: benchmarks/speed"
	@$(BIN)/python -m benchmarks.speed $(SPEED_ARGS)

bench-speed-peers: setup  ## Environments of tools that need one of their own, into .venv-speed (7 GB)
	@echo "bench-speed-peers: pip"
	@PIP_ARGS="$(PIP_ARGS)" $(BIN)/python -m benchmarks.speed.environments

audit: setup  ## Known vulnerabilities of the pinned packages, and the licences of the installed ones
	@echo "audit: pip-audit and tools/audit/licences.toml"
	@PYTHONPATH=tools $(BIN)/python -m audit

docs: setup  ## The pages of docs/ as a site, into out/docs
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs out/docs
	@echo out/docs/index.html

clean:  ## Remove what was made, .venv included
	@echo "clean: $(VENV) .venv-speed out caches"
	@rm -rf $(VENV) .venv-speed out dist .mypy_cache .pytest_cache .ruff_cache .benchmarks
	@find ptsr_edge tests tools -name __pycache__ -type d -exec rm -rf {} +
