# `make demo` and `make test` need git, make and python3 (3.10.12 or newer); the rest they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
META := setup.py settings.ini constraints.txt
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
JOBS ?= 2
export MPLBACKEND ?= agg

.PHONY: help demo test test-all coverage lab book explorer browser prepare outputs

help:
	@echo 'make demo                  learn the 18 embedded chairs and show what came of it'
	@echo 'make test                  run every notebook and test, but for slow tests'
	@echo 'make test-all              run everything, and print which share of the library it reaches'
	@echo 'make lab                   open the notebooks in JupyterLab'
	@echo 'make book                  build the site of all notebooks, with search, in _docs/html'
	@echo 'make prepare               after editing notebooks: link, export, clean, write README.md and the model card'
	@echo 'make outputs NB=nbs/library/viz.ipynb   run a notebook and store its outputs in the file'

demo: .venv/.lib
	$(BIN)/nvs demo

# One thread per worker: two notebooks side by side use two cores better than one notebook on both.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -rs -n $(JOBS) --dist worksteal --durations=15 -p no:cacheprovider

test: .venv/.dev
	$(PYTEST) -m 'not slow'

test-all: .venv/.dev
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=85

# Without the slow tests; more than `make test` takes, for every line is counted.
coverage: .venv/.dev
	$(PYTEST) -m 'not slow' --cov --cov-report=term-missing:skip-covered

lab: .venv/.dev
	$(BIN)/jupyter lab --ServerApp.root_dir='$(CURDIR)' nbs/index.ipynb

# From stored outputs: nothing is run. The explorer of the shipped run is part of it if `make explorer` wrote it before.
book: .venv/.dev
	$(BIN)/python docs/book.py $$(test ! -f _docs/explore/index.html || echo --explorer _docs/explore)

explorer: .venv/.dev
	$(BIN)/nvs explore pretrained --ort download --out _docs/explore

# A Chromium for the tests of pages, where the system has none.
browser: .venv/.dev
	$(BIN)/playwright install --with-deps chromium

prepare: .venv/.dev
	$(BIN)/python .ci/chapter_links.py
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/readme.py
	$(BIN)/python .ci/card.py

outputs: .venv/.dev
	@test -n "$(NB)" || { echo 'say which notebook: make outputs NB=nbs/library/viz.ipynb'; exit 2; }
	$(BIN)/python .ci/store_outputs.py $(NB)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) not found: install Python 3.10.12 or newer, or say PYTHON=/path/to/python3'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10, 12))' || \
		{ echo "Python 3.10.12 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): say PYTHON=/path/to/a/newer/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo '$(PYTHON) comes without venv: on Debian and Ubuntu, `sudo apt install python3-venv` adds it'; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# Stamps: installed anew only when the requirements change.
.venv/.lib: $(META) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

.venv/.dev: $(META) | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch .venv/.lib $@
