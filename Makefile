# Two commands for everybody: `make reproduce` and `make test`. Each first sets up .venv if the lock or setup.cfg changed.
# Plain commands for the same steps are in CONTRIBUTING.md.

PYTHON ?= python3
RUN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help reproduce test lint types test-checkout test-wheel test-slow peers format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

reproduce: .venv/installed ## run the main job: the numerical validation, then fusion on the bundled patients, into results/
	$(RUN) -m experiments.fusion_quality.run
	$(RUN) -m experiments.sarcoma_fusion.run --no-survival

test: lint types test-checkout test-wheel ## run everything a change must pass: lint, types, tests, notebooks, wheel

lint: .venv/installed ## check format and lint
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check

types: .venv/installed ## check types
	$(RUN) -m pyright

test-checkout: .venv/installed ## run doctests, notebooks and the tests that need the tree
	$(RUN) -m pytest -n 2 --dist loadfile -m "checkout and not slow"

test-wheel: .venv/installed ## run all other tests against the built and installed wheel
	$(RUN) -m tests.wheel

test-slow: .venv/installed ## run the slow tests; those that need .venv-peers say so when it is missing
	$(RUN) -m pytest -n 2 -m slow

peers: .venv-peers/installed ## set up .venv-peers with PyTorch, for slow parity tests and benchmarks

format: .venv/installed ## format the code and apply safe lint fixes
	$(RUN) -m ruff format
	$(RUN) -m ruff check --fix

lock: ## renew requirements-dev.lock from setup.cfg (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--extra dev --extra notebooks --extra imaging --extra cluster --extra tensorboard setup.cfg -o requirements-dev.lock

clean: ## remove environments, caches and build products; results/ stays
	rm -rf .venv .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a target is made again only when what it was made from has changed.

.venv/installed: requirements-dev.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fusion_jax needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --require-hashes -r requirements-dev.lock
	$(RUN) -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

.venv-peers/installed: Makefile
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install torch==2.13.0 safetensors numpy pillow
	# Its Python code alone, apart from where PyTorch looks: the compiled operators do not load beside every build.
	.venv-peers/bin/python -m pip install --no-deps --target .venv-peers/torchvision torchvision==0.28.0
	@touch $@
