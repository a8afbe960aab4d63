# Everything installs into .venv from the package registries. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help postgres sandbox setup check lint test test-all demo bench up down openapi sdk

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

setup: $(STAMP) ## install everything into .venv

lint: $(STAMP) ## format, lint, types, import rules; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## what pre-commit runs

postgres: ## install Debian's PostgreSQL, which the tests start themselves, if there is none
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
	{ test "$$(id -u)" = 0 || { echo "install PostgreSQL: apt-get install postgresql" >&2; exit 2; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; }

sandbox: ## install Debian's bubblewrap and node, in which the code environment runs, if missing
	@command -v bwrap >/dev/null && command -v node >/dev/null || \
	{ test "$$(id -u)" = 0 || { echo "install the sandbox: apt-get install bubblewrap nodejs" >&2; exit 2; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	$$(command -v bwrap >/dev/null || echo bubblewrap) $$(command -v node >/dev/null || echo nodejs); }

# Tests that need no stack share the cores; the others wait most of the time, so two stacks run.
PYTEST = $(BIN)/python -m pytest -q
SIDE_BY_SIDE = -n auto --maxprocesses 4 --dist worksteal
ON_STACKS = tests/durable tests/e2e -n 2 --dist loadfile

test: $(STAMP) postgres sandbox lint ## lint, and all tests but the longest
	$(PYTEST) tests -m "not stack and not slow" $(SIDE_BY_SIDE)
	$(PYTEST) $(ON_STACKS) -m "stack and not slow"

test-all: $(STAMP) postgres sandbox lint ## every test, the whole kill matrix included
	$(PYTEST) tests -m "not stack" $(SIDE_BY_SIDE)
	$(PYTEST) $(ON_STACKS) -m stack

demo: $(STAMP) ## train a small model, kill a worker on the way, sample from what comes out
	$(BIN)/python examples/demo/run.py

bench: $(STAMP) postgres ## measure against peers; prints ratios
	$(BIN)/python -m benchmarks.run

up: $(STAMP) ## start the stack
	$(BIN)/loomos up

down: ## stop the stack
	$(BIN)/loomos down

openapi: $(STAMP) ## write docs/openapi.json anew
	$(BIN)/python -m api.openapi > docs/openapi.json

sdk: $(STAMP) ## write the twin of the client anew
	$(BIN)/python -m loomos.client.twin > loomos/client/.synchronous.py
	mv loomos/client/.synchronous.py loomos/client/synchronous.py
	$(BIN)/ruff check --quiet --fix --ignore E501 loomos/client/synchronous.py
	$(BIN)/ruff format --quiet loomos/client/synchronous.py
