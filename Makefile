# avpipe: `make` alone prints what there is. Nothing is needed on the machine but Python >= 3.11 and make.

VENV   ?= .venv
DEMO   ?= demo
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN    := $(VENV)/bin
# Two cores are few: one test process a core, and no thread pools fighting for them.
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit bench docs clean

help:  ## print this
	@echo "make demo     install, then the whole job on rendered clips: videos in, captions and scores out"
	@echo "make test     install, then lint, types and tests"
	@echo "make bench    install, then the benchmarks (docs/benchmarks.md says what they show); MEDIA=folder for decoding"
	@echo "make docs     bring the README's table of datasets up to date, which is made of their cards"
	@echo "make lint | types | unit   the parts of 'make test'"
	@echo "make clean    remove $(VENV), $(DEMO) and caches"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "avpipe needs Python >= 3.11: none found; say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install  ## the main job, end to end
	$(BIN)/avpipe demo --workspace $(DEMO)

test: lint types unit  ## everything that must hold

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

unit: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

bench: install  ## measure speed and endurance; prints ratios within one run
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/extract.py
	@if [ -n "$(MEDIA)" ]; then $(BIN)/python benchmarks/decode.py --media "$(MEDIA)"; \
	else echo "decoding: say make bench MEDIA=folder-of-videos"; fi

docs: install  ## bring the tables up to date that are made of the code
	$(BIN)/python -m avpipe.data_manifests.cards

clean:
	rm -rf $(VENV) $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis
