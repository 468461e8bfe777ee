# `make train` and `make test` install what they need into .venv, once.

python := .venv/bin/python

.PHONY: help train test test-gpu check style clean

help:
	@echo "make train   install into .venv and train the default model on the built-in corpus"
	@echo "make test    install the test dependencies, check the style and run the tests"
	@echo "make test-gpu   run the tests that need a GPU; with python=python3, in that environment"
	@echo "make check   check the style; with option=model/attn=mqa, also the laws of that option"
	@echo "make clean   remove .venv and caches; runs under outputs/ stay"

train: .venv/installed
	$(python) run.py

# one worker for each logical core, but no more than four; the processes that tests start needn't compile the modules again,
# whatever the environment says
test: style
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(python) -m pytest -m 'not gpu' --numprocesses logical --maxprocesses 4 --dist worksteal

# with another python, only pytest, pytest-xdist and hypothesis are needed in addition
test-gpu: $(if $(filter .venv/%,$(python)),.venv/installed-test)
	$(python) -m pytest tests/gpu -m gpu --override-ini addopts=-q -rs --durations 15 --numprocesses 8 --maxschedchunk 1

# option: overrides and flags of run.py, such as 'model/attn=decay --config-dir my_idea/conf extensions=[my_idea]'
check: style
	$(if $(option),OPTION="$(option)" $(python) -m pytest -rs tests/check_option.py)

style: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo

# reinstalled when pyproject.toml changes
.venv/installed: pyproject.toml | .venv/bin/pip
	$(python) -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-test: pyproject.toml | .venv/bin/pip
	$(python) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@ .venv/installed

.venv/bin/pip:
	python3 -m venv .venv

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
