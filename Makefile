# Pinstripe. `make` lists the targets.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_ARGS ?=
TEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test check format catalog docs wheel bench soak attack examples deploy lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

# uv comes from PyPI, pinned by hash like everything else; it installs the rest.
$(STAMP): requirements/uv.txt requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pinstripe needs Python 3.11 or newer; name one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --require-hashes requirements/dev.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(STAMP) ## make the environment in .venv, nothing else

run: setup ## the main job: sync an account (STRIPE_API_KEY) or the demo account into Postgres
	$(BIN)/pinstripe run $(RUN_ARGS)

# Three workers: two leave a third of two cores idle, since many tests wait.
test: setup ## all tests, on a real Postgres
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -q $(TEST_ARGS)

check: setup ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff write
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

catalog: setup ## generate the catalog anew from the installed stripe package
	$(BIN)/python -m tools.catalog

docs: setup ## generate the reference pages and build the site in site/
	$(BIN)/python -m tools.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

wheel: setup ## build the wheel in dist/
	$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir dist .

bench: setup ## speed and memory against the limits, beside the official SDK
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

soak: setup ## long runs under faults
	SOAK_SECONDS=$${SOAK_SECONDS:-300} HISTORY_ACCOUNTS=$${HISTORY_ACCOUNTS:-10} HISTORY_ROUNDS=$${HISTORY_ROUNDS:-3} \
	  ORDERS=$${ORDERS:-100000} VERIFY_EXAMPLES=$${VERIFY_EXAMPLES:-25} \
	  PINSTRIPE_WAIT_SOAK=$${PINSTRIPE_WAIT_SOAK:-10000} BACKFILL_SCALE=$${BACKFILL_SCALE:-3000} \
	  $(BIN)/pytest -q -s tests/flows/test_soak.py tests/flows/test_histories.py tests/flows/test_verify.py \
	  tests/flows/test_wait_soak.py tests/flows/test_backfill.py tests/postgres/test_orders.py \
	  tests/flows/test_platform_demo.py tests/flows/test_platform_soak.py $(TEST_ARGS)

attack: setup ## what a stranger may try, in full; with nginx, HAProxy and a JDK where they are installed
	$(BIN)/pytest -n 2 --dist loadfile -q tests/attack $(TEST_ARGS)

examples: setup ## the official package's own examples on the simulator; STRIPE_SDIST names its archive, else it is downloaded
	$(BIN)/python -m tools.examples
	$(BIN)/python -m tools.examples --proxy

deploy: setup ## check image, compose, Kubernetes and workflow files with their own checkers
	$(BIN)/uv venv --quiet --clear $(VENV)-deploy
	VIRTUAL_ENV=$(CURDIR)/$(VENV)-deploy $(BIN)/uv pip sync --quiet --require-hashes requirements/deploy.txt
	$(VENV)-deploy/bin/hadolint deploy/Dockerfile
	$(VENV)-deploy/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(VENV)-deploy/bin/kubernetes-validate --strict deploy/kubernetes/*.yaml
	$(VENV)-deploy/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

lock: setup ## resolve the requirements files anew
	$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements/main.txt
	$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header --no-emit-index-url --no-emit-find-links pyproject.toml --group dev -o requirements/dev.txt
	printf 'check-jsonschema\nhadolint-bin\nkubernetes-validate\n' | $(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header --no-emit-index-url --no-emit-find-links - -o requirements/deploy.txt
	echo uv | $(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header --no-emit-index-url --no-emit-find-links - -o requirements/uv.txt

clean: ## remove the environment, the demo's data and what was built
	rm -rf $(VENV) $(VENV)-deploy .pinstripe dist site
