# make course     create the environment if there is none, execute every notebook, print what was found
# make lab        open JupyterLab on notebook 00
# make test       environment, lint, unit tests, every notebook once
# make test-lowest  the fast tests on the lowest versions that pyproject.toml allows, in build/lowest
# make notebooks  execute every notebook and keep the new outputs in notebooks/
# make site       all notebooks and pages as HTML in build/site/, to read without running anything
# make clean      remove the environment that make made, executed copies, toy builds and caches; nothing else
# make test-faults KILLS=60   kill toy builds so often and damage every shipped file, in an hour or two: all is told, and
#                 builds end with the same bytes
#
# make test PYTHON=python3.12 VENV=/some/folder PIP_ARGS="--index-url ..."   # another Python, place or wheel index

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=

# Make knows no names with spaces, and what stands below removes and writes in this folder.
ifneq ($(words $(VENV)),1)
$(error VENV must be the path of one folder, without spaces, got "$(VENV)")
endif
ifeq ($(wildcard cotgen_lite/experiments/build.py),)
$(error Run make in the folder of this Makefile: this is not it)
endif

BIN := $(VENV)/bin
ENV := $(VENV)/.complete
OURS := $(VENV)/.made-by-make
override COPIES := build/notebooks
override LOWEST := build/lowest
KILLS ?= 60
PYTEST := $(BIN)/python -m pytest
# A shell's "$@": the copies of the course's notebooks, and none of a file that somebody else keeps beside them.
COPIED = set --; for one in notebooks/[01][0-9]_*.ipynb; do set -- "$$@" "$(COPIES)/$$(basename "$$one")"; done

.PHONY: course lab test lint check copies notebooks site env clean test-faults test-lowest
.DELETE_ON_ERROR:

# The course needs no network: loading a model by a hub name by mistake fails at once instead of downloading.
course check notebooks: export HF_HUB_OFFLINE = 1
# Two processes test, each on a core: a container may show many more, and more threads than cores make torch crawl.
check: export OMP_NUM_THREADS ?= 1

course: $(ENV) copies
	@$(COPIED); set -x; $(PYTEST) --nbmake --overwrite "$$@"
	$(BIN)/python -m cotgen_lite.build table

lab: $(ENV)
	$(BIN)/jupyter lab notebooks/00_generate_step_by_step.ipynb

test: lint check

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell cotgen_lite tests notebooks .github README.md data/README.md
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Unit tests and notebooks in one pytest run, by two processes, so that its closing line counts everything.
check: $(ENV) copies
	@$(COPIED); set -x; $(PYTEST) -n 2 --dist worksteal --nbmake --overwrite tests "$$@"

# A test of what requirements.txt pins is left out: here other versions are meant.
test-lowest: export HF_HUB_OFFLINE = 1
test-lowest: export OMP_NUM_THREADS ?= 1
test-lowest: $(LOWEST)/.complete
	$(LOWEST)/bin/python -m pytest -n 2 -m "not slow and not browser" -k "not pinned_version" tests

$(LOWEST)/.complete: requirements-lowest.txt pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install $(PIP_ARGS) -r requirements-lowest.txt -e .
	@touch $@

# Notebooks run as copies, so that a failure leaves the tracked files as they were.
copies:
	@mkdir -p $(COPIES)
	cp notebooks/[01][0-9]_*.ipynb $(COPIES)

# Outputs stay; time stamps, widget state, versions and the views of cells tagged "widget" go: they differ at every run;
# and those of cells tagged "prediction-result", which a reader is to guess first.
notebooks: $(ENV) copies
	@$(COPIED); set -x; $(PYTEST) --nbmake --overwrite "$$@"
	@$(COPIED); set -x; $(BIN)/jupyter nbconvert --log-level=WARN --to notebook --inplace \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_all_outputs_tags="{'widget', 'prediction-result'}" "$$@"
	@$(COPIED); set -x; $(BIN)/nbstripout --keep-output --keep-count --keep-id \
		--extra-keys "metadata.language_info.version" "$$@"
	@$(COPIED); set -x; cp "$$@" notebooks

site: $(ENV)
	$(BIN)/python -m cotgen_lite.course.site build/site

env: $(ENV)

# The second pip line is environment.yml's pip section, word for word: a test holds the two equal.
$(ENV): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " \
		+ sys.version.split()[0] + ": name another, as in make PYTHON=python3.12")'
	@[ -e "$(VENV)" ] || { mkdir -p "$(VENV)" && touch "$(OURS)"; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -r requirements.txt -e .
	@touch $@

test-faults: $(ENV)
	HF_HUB_OFFLINE=1 $(BIN)/python tests/faults.py --kills $(KILLS)

# Builds at full size stay, as do folders and environments that others made, and what Jupyter keeps of their notebooks.
clean:
	@if [ -e "$(OURS)" ]; then rm -rf "$(VENV)" && echo "removed $(VENV)"; \
	elif [ -e "$(VENV)" ]; then echo "$(VENV) stays: make did not make it"; fi
	@$(COPIED); set -x; rm -f "$$@"
	-[ ! -d $(COPIES) ] || rmdir $(COPIES) 2> /dev/null || echo "$(COPIES) stays: $$(ls $(COPIES) | tr '\n' ' ')"
	rm -rf $(LOWEST) build/site build/quick build/faults
	-[ ! -d build ] || rmdir build 2> /dev/null || echo "build stays: $$(ls build | tr '\n' ' ')"
	rm -rf .mypy_cache .pytest_cache .ruff_cache cotgen_lite.egg-info
	find cotgen_lite tests -type d -name __pycache__ -prune -exec rm -rf {} +
