# Each target works from a fresh clone: it makes .venv, installs what it needs, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The dearest files are collected first; sorted by their numbers of tests they would come last.
SHARED := -n logical --dist loadfile --no-loadscope-reorder

.PHONY: demo test slow golden lint format bench docs runtime fuzz sanitize clean help
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# What a user installs, with the peers that verify and bench compare with.
$(VENV)/.installed: setup.cfg setup.py pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[verify,bench]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[verify,bench,docs,test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[verify,bench,docs]'
	@touch $@

demo: $(VENV)/.installed ## compile, verify, evaluate and benchmark the embedded network
	$(BIN)/tinsmith demo -o out/demo

# The package as it is installed, for mypy, which does not ask setuptools where its parts lie.
$(VENV)/typing/tinsmith: | $(BIN)/python
	mkdir -p $@
	ln -sf $(addprefix ../../../,tinsmith/__init__.py compiler passes targets tuning_logs) $@

lint: $(VENV)/.installed-test $(VENV)/typing/tinsmith ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## lint, then all tests but the slow ones
	$(BIN)/python -m pytest -q $(SHARED)

golden: $(VENV)/.installed-test ## write the decisions anew that tests compare with, after a change that is meant
	$(BIN)/python -m pytest -q --update-golden tests/compiler/pipeline/test_frozen_decisions.py

slow: $(VENV)/.installed-test ## the slow tests, as many as fit into MINUTES (20)
	$(BIN)/python -m pytest -q -m slow -p tests.time_box --minutes $(or $(MINUTES),20)

sanitize: $(VENV)/.installed-test ## the C runtime under ASan, UBSan and TSan (needs gcc or clang)
	@if command -v gcc >/dev/null || command -v clang >/dev/null; then \
	  TINSMITH_ROUNDS=100 TINSMITH_MUTANTS=20000 $(BIN)/python -m pytest -q -m '' tests/compiler/module/test_sanitizers.py; \
	else echo "sanitize: skipped, neither gcc nor clang is here"; fi

format: $(VENV)/.installed-test ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: $(VENV)/.installed-test ## 10,000 damaged models through the front end, 500 through the compiler
	$(BIN)/python -m tests.fuzz --stage import --mutants 10000 --jobs 2 --out out/fuzz
	$(BIN)/python -m tests.fuzz --stage compile --mutants 500 --own --jobs 2 --out out/fuzz

bench: $(VENV)/.installed ## the table of float32 latencies (minutes)
	$(BIN)/python benchmarks/latency.py

docs: $(VENV)/.installed-docs ## build the site of the documentation into out/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo 'out/docs/index.html is built; with search: $(BIN)/python -m http.server -d out/docs'

runtime: | $(BIN)/python ## the wheel of tinsmith-runtime, which runs modules without the compiler
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist ./runtime
	@ls dist/tinsmith_runtime-*.whl | sed 's/$$/ is built/'

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist out *.egg-info runtime/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
