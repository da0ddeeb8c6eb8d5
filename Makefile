# make course     create the environment if there is none, execute every notebook, print what was found
# make lab        open JupyterLab on notebook 00
# make test       environment, lint, unit tests, every notebook once
# make notebooks  execute every notebook and keep the new outputs in notebooks/
# make site       all notebooks and pages as HTML in build/site/, to read without running anything
# make clean      remove the environment, executed copies and caches
#
# make test PYTHON=python3.12 VENV=/some/folder PIP_ARGS="--index-url ..."   # another Python, place or wheel index

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=

BIN := $(VENV)/bin
ENV := $(VENV)/.complete
COPIES := build/notebooks
PYTEST := $(BIN)/python -m pytest

.PHONY: course lab test lint check copies notebooks site env clean
.DELETE_ON_ERROR:

# The course needs no network: loading a model by a hub name by mistake fails at once instead of downloading.
course check notebooks: export HF_HUB_OFFLINE = 1
# Two processes test, each on a core: a container may show many more, and more threads than cores make torch crawl.
check: export OMP_NUM_THREADS ?= 1

course: $(ENV) copies
	$(PYTEST) --nbmake --overwrite $(COPIES)
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
	$(PYTEST) -n 2 --dist worksteal --nbmake --overwrite tests $(COPIES)

# Notebooks run as copies, so that a failure leaves the tracked files as they were.
copies:
	rm -rf $(COPIES)
	mkdir -p $(COPIES)
	cp notebooks/*.ipynb $(COPIES)

# Outputs stay; time stamps, widget state, versions and the views of cells tagged "widget" go: they differ at every run.
notebooks: $(ENV) copies
	$(PYTEST) --nbmake --overwrite $(COPIES)
	$(BIN)/jupyter nbconvert --log-level=WARN --to notebook --inplace \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_all_outputs_tags=widget \
		$(COPIES)/*.ipynb
	$(BIN)/nbstripout --keep-output --keep-count --keep-id \
		--extra-keys "metadata.language_info.version" $(COPIES)/*.ipynb
	cp $(COPIES)/*.ipynb notebooks

site: $(ENV)
	$(BIN)/python -m cotgen_lite.course.site build/site

env: $(ENV)

# The second pip line is environment.yml's pip section, word for word: a test holds the two equal.
$(ENV): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " \
		+ sys.version.split()[0] + ": name another, as in make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -r requirements.txt -e .
	@touch $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache cotgen_lite.egg-info
	find cotgen_lite tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
