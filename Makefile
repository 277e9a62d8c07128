# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# The longest files first, on two workers; what glibc keeps for each thread would be gigabytes.
PYTEST := MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo study test test-all test-fast torture bench guard check format clean
BENCH_STAMP := $(VENV)/.ready-bench

setup: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is %d.%d: run make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: setup
	$(BIN)/python -m kd_jax.demo

study: setup
	$(BIN)/python -m kd_jax.study --config=configs/studies/demo.py --workdir=runs/study

test: setup
	$(PYTEST) -m "not proof"

test-all: setup
	$(PYTEST)

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

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
