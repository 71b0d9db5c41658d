PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
DATA ?= data
BIN := $(VENV)/bin
# glibc keeps freed memory, of which XLA's CPU backend asks for new in every step (docs/running.md)
export MALLOC_ARENA_MAX ?= 1
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 2147483647

.PHONY: demo test lint install clean

demo: install  ## InfoMask on synthetic chest films, a third of the usual steps, against CAM and controls; pictures
	$(BIN)/python -m infomask_jax prepare synthetic --data-dir $(DATA)/demo
	$(BIN)/python experiments/quickstart.py --data-dir $(DATA)/demo --workdir $(RUN) --train.steps 900

test: install  ## every test, or TESTS
	$(BIN)/python -m pytest -n 2 $(TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(DATA)/demo runs/demo
