# Two commands are all a newcomer needs: `make sweep` and `make test`.
# PYTHON names an interpreter of version 3.11 to 3.13; the first one found is taken.

SHELL := /bin/bash
.DEFAULT_GOAL := help

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$python >/dev/null 2>&1 && $$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

# How many tests run side by side; those of one file stay together.
JOBS ?= 2
TOGETHER := --dist loadfile --no-loadscope-reorder

# How many trials `make soak` has on each pair of stores.
TRIALS ?= 100

# Each of the many processes that tests start imports regtune: where this is set, each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: help sweep test test-slow proofs lint bench-train bench-quick bench-sweep bench-scale bench-coordinator bench-history \
	bench-sync bench-tracking bench-load bench-start bench-decision bench-ray bench-peers bench-simulate \
	docs faults soak secrets lock clean

help:  ## Show the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

sweep: .venv/.installed  ## Install what is needed, then run sweeps/quickstart.yaml: a few minutes
	$(BIN)/regtune sweep sweeps/quickstart.yaml

test: .venv/.tested  ## Run the quick tests
	$(BIN)/python -m pytest -n $(JOBS) $(TOGETHER) -m "not slow and not full_mnist and not browser and not proof"

test-slow: .venv/.tested  ## Run the slow tests: full MNIST, browser, long proofs
	$(BIN)/python -m pytest -n $(JOBS) $(TOGETHER) -m "(slow or full_mnist or browser) and not proof"

proofs: .venv/.tested  ## Prove what CI shortens or leaves out, and record it: hours, before a release
	$(BIN)/python -m pytest -n $(JOBS) $(TOGETHER) -m proof --proofs benchmarks/proofs.json

lint: .venv/.tested  ## Check format, style, types, the walls between the modules, and the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MKDOCS) build --quiet

docs: .venv/.tested  ## Bring the documentation up to date and show it on http://127.0.0.1:8000
	$(BIN)/python docs/generate.py
	$(MKDOCS) serve --dev-addr 127.0.0.1:8000

bench-train: .venv/.tested  ## Measure an epoch against its floor and against the notebook's way
	$(BIN)/python benchmarks/bench_train.py --json benchmarks/train.json

bench-quick: .venv/.tested  ## The same, shortened, and without a verdict: machines may be busy
	$(BIN)/python benchmarks/bench_train.py --quick --no-verdict
	$(BIN)/python -m benchmarks.bench_simulate --quick

bench-sweep: .venv/.tested  ## Sixty trials on the full MNIST, beside the notebook's way
	$(BIN)/python benchmarks/bench_sweep.py --json benchmarks/sweep.json --board benchmarks/board.txt

bench-scale: .venv/.tested  ## Read a study of 10,000 trials: time and memory of each reading verb
	$(BIN)/python benchmarks/bench_scale.py --json benchmarks/scale.json

bench-coordinator: .venv/.tested  ## What the coordinator costs a trial, at 100 to 10,000 trials
	$(BIN)/python benchmarks/bench_coordinator.py --json benchmarks/coordinator.json

bench-history: .venv/.tested  ## What a sampler loses that sees a bounded history
	$(BIN)/python benchmarks/bench_history.py --json benchmarks/history.json

bench-decision: .venv/.tested  ## How often a decision errs: simulated sweeps
	$(BIN)/python -m benchmarks.bench_decision --json benchmarks/decision.json

bench-simulate: .venv/.tested  ## How many workers one coordinator keeps busy, by simulation: an hour
	$(BIN)/python -m benchmarks.bench_simulate --json benchmarks/simulate.json; code=$$?; $(BIN)/python docs/images/draw_bars.py; exit $$code

bench-sync: .venv/.tested  ## Compare a study of 10,000 trials with MLflow: time and memory
	$(BIN)/python benchmarks/bench_sync.py --json benchmarks/sync.json

bench-tracking: .venv/.tested  ## What MLflow costs a sweep: with and without, interleaved
	$(BIN)/python benchmarks/bench_tracking.py --json benchmarks/tracking.json

bench-load: .venv/.tested  ## Two thousand short trials: throughput, memory, files, threads
	$(BIN)/python benchmarks/bench_load.py --json benchmarks/load.json

bench-ray: .venv/.benched  ## What an epoch and a trial cost on Ray, beside Ray Tune's
	$(BIN)/python benchmarks/bench_ray.py --json benchmarks/ray.json

bench-start: .venv/.tested  ## Where the seconds of the quickstart go, and what eight workers hold
	$(BIN)/python benchmarks/bench_start.py --json benchmarks/start.json

bench-peers: .venv/.benched  ## The same searches by regtune, Optuna, Ray Tune and KerasTuner, after a parity gate
	$(BIN)/python benchmarks/bench_peers.py --json benchmarks/peers.json; code=$$?; $(BIN)/python docs/images/draw_bars.py; exit $$code

faults: .venv/.tested  ## Every fault on every pair of stores, nothing shortened: an hour
	$(BIN)/python -m pytest -n $(JOBS) $(TOGETHER) tests/faults

soak: .venv/.tested  ## TRIALS short trials under a random fault every four seconds, on SQLite and PostgreSQL
	PYTHONPATH=tests $(BIN)/python tests/faults/soak.py --trials $(TRIALS) --json benchmarks/soak.json

secrets:  ## Make the passwords of docker-compose.yml, once
	deploy/make-secrets

lock:  ## Pin every package with its hashes (needs uv)
	uv pip compile pyproject.toml --group build --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -o requirements.lock
	uv pip compile pyproject.toml --group build --group test --group lint -c requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
		-o requirements-dev.lock
	echo "ray[default]" | uv pip compile - -c requirements-dev.lock --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate -o requirements-ray.lock \
		$$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock)

clean:  ## Remove the environment; studies in mlruns/ stay
	rm -rf .venv

.venv/.made:
	@test -n "$(PYTHON)" || { echo "regtune needs Python 3.11, 3.12 or 3.13; found: $$(python3 --version 2>&1). Install one, or say: make sweep PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "regtune needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.made requirements.lock pyproject.toml
	@echo "Installing what requirements.lock names into .venv (once, about a minute)"
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.tested: .venv/.installed requirements-dev.lock
	@echo "Installing what the tests need"
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

.venv/.benched: .venv/.tested
	@echo "Installing the tools that bench-peers runs"
	$(PIP) install --no-build-isolation --editable '.[bench]'
	@touch $@
