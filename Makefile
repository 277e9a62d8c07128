# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# The longest files first, on two workers; what glibc keeps for each thread would be gigabytes.
PYTEST := MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo study test test-all test-next test-fast torture bench guard check docs lock format clean
BENCH_STAMP := $(VENV)/.ready-bench

# The newest JAX needs a newer Python. A shim of pyenv may be there and not start, so each is tried.
NEXT := .venv-next
NEXT_STAMP := $(NEXT)/.ready
NEXT_PYTHON ?= $(shell for p in python3.12 python3.13 python3.14 $(HOME)/.pyenv/versions/3.1[2-4]*/bin/python; \
	do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$p" && break; done)
# Golden outputs, losses, steps on 1, 2 and 4 devices, and a run that is killed and resumed.
NEXT_TESTS := tests/models/test_models.py tests/distillation tests/runtime/test_devices.py \
	tests/training/test_checkpoints.py tests/commands/test_commands.py

setup: $(STAMP)

$(STAMP): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is %d.%d: run make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/python -m kd_jax.demo

study: setup
	$(BIN)/python -m kd_jax.study --config=configs/studies/demo.py --workdir=runs/study

test: setup
	$(PYTEST) -m "not proof"

test-all: setup
	$(PYTEST)
	$(MAKE) test-next

ifneq ($(NEXT_PYTHON),)
test-next: $(NEXT_STAMP)
	$(subst $(BIN),$(NEXT)/bin,$(PYTEST)) -m "not slow and not proof" $(NEXT_TESTS)
else
test-next:
	@echo "test-next: skipped, no Python 3.12 or newer was found (make test-next NEXT_PYTHON=PATH)"
endif

$(NEXT_STAMP): requirements-next.txt
	$(NEXT_PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

torture: setup
	$(BIN)/python -m kd_jax.torture

test-fast: setup
	$(PYTEST) -m "not slow and not proof"

$(BENCH_STAMP): $(STAMP) requirements-bench.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks $(BENCH)

guard: setup
	$(BIN)/python -m benchmarks.lowering

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

DOCS_STAMP := $(VENV)/.ready-docs

$(DOCS_STAMP): $(STAMP) requirements-docs.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # --quiet would count no warnings, and never fail

# The versions that the tests run with: on the oldest Python, and with the newest JAX. What is locked
# stays as it is where it still fits; `make lock LOCK=--upgrade` takes the newest of everything.
COMPILE := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal \
	--no-annotate --no-emit-index-url --no-emit-find-links $(LOCK) pyproject.toml

lock: setup
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --python-version 3.11 --extra dev -o requirements-dev.txt
	$(COMPILE) --python-version 3.11 --extra tfds -c requirements-dev.txt -o requirements.txt
	$(COMPILE) --python-version 3.11 --extra docs -c requirements-dev.txt -o requirements-docs.txt
	$(COMPILE) --python-version 3.12 --extra dev -o requirements-next.txt \
		--upgrade-package jax --upgrade-package jaxlib --upgrade-package flax

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(NEXT) runs site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
