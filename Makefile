# `make help` lists what can be made. Every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# Set to https://download.pytorch.org/whl/cpu to fetch PyTorch without CUDA.
TORCH_INDEX ?=
OUTPUT ?= portcullis-run
CONTAINER ?= $(firstword $(foreach tool,podman docker,$(shell command -v $(tool))))
# The image's base, by digest for a release: make images BASE=docker.io/library/python@sha256:…
BASE ?=
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' components/portcullis/__init__.py)
IMAGE = portcullis-python:$(VERSION)
PIP_COMPILE = $(BIN)/pip-compile --quiet --constraint build/torch.txt --generate-hashes --unsafe-package torch --strip-extras --no-header --no-annotate --no-emit-index-url --no-emit-find-links $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz lint format bench compile images push lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## create .venv with the locked dependencies

$(VENV)/.installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing; install Python 3.11 or newer"; exit 2; }
	@command -v git >/dev/null || { echo "error: git is missing; install git"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; try: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/pip check --quiet
	@touch $@

demo: install ## run the reference pipeline locally on real data
	$(BIN)/portcullis run --output $(OUTPUT)

test: install ## run every test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fuzz: install ## fuzz what parses foreign bytes: make fuzz SECONDS=300 TARGETS="csv mask"
	$(BIN)/python -m fuzz $(TARGETS) --seconds $(or $(SECONDS),30)

lint: install ## ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

compile: install ## write every component.yaml, the reference pipeline's YAML and the READMEs' tables
	$(BIN)/python -m portcullis_pipelines.compile
	$(BIN)/python -m portcullis_pipelines.readme

bench: install ## run the benchmarks; QUICK=1 for a short run
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

images: install ## build the image of every stage with podman or docker
	@test -n "$(CONTAINER)" || { echo "error: neither podman nor docker is here; install one"; exit 2; }
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	$(CONTAINER) build -f images/Containerfile $(if $(BASE),--build-arg BASE=$(BASE)) --build-arg TORCH=$(TORCH) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) -t $(IMAGE) .

push: images ## push it and print its digest: make push REGISTRY=registry.example.com/team
	@test -n "$(REGISTRY)" || { echo "error: name the registry: make push REGISTRY=registry.example.com/team"; exit 2; }
	$(CONTAINER) tag $(IMAGE) $(REGISTRY)/$(IMAGE)
	$(CONTAINER) push $(REGISTRY)/$(IMAGE)
	@echo "compile with: --image $$($(CONTAINER) image inspect --format '{{index .RepoDigests 0}}' $(REGISTRY)/$(IMAGE))"

lock: install ## pin the newest tested versions again (torch stays outside hash locking)
	$(BIN)/pip install --quiet pip-tools
	mkdir -p build && echo "$(TORCH)" > build/torch.txt
	$(PIP_COMPILE) --upgrade --extra dev --output-file requirements.lock pyproject.toml
	sed -i '/^# WARNING/,/^kfp-portcullis @/d; 1i # The versions that were tested together, with hashes; made by `make lock`. torch is installed beside it (Makefile).' requirements.lock
	$(PIP_COMPILE) --upgrade --extra kfp,torch,serve,data,dp --constraint requirements.lock --output-file images/requirements.lock pyproject.toml
	sed -i '/^# WARNING/,$$d' images/requirements.lock

clean: ## remove what was built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
