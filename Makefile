# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv if it is not there.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow parity bench lock clean

demo: .venv/demo.stamp
	$(BIN)/python -m experiments.alphabet
	$(BIN)/python -m experiments.text_generator train --corpus python-docs --layers 1 \
		--hidden-size 256 --batch-size 32 --seq-length 64 --carry-state --epochs 12 \
		--learning-rate 4e-3 --schedule cosine --clip-norm 1 --sample-temperature 0.7 \
		--sample-length 100
	$(BIN)/python -m experiments.text_generator generate --prime "The " --length 400 --temperature 0.7

test: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2

test-slow: .venv/test.stamp
	$(BIN)/python -m pytest -m slow

# The tests against PyTorch and TensorFlow run where this has been done; elsewhere they are skipped.
parity: .venv/test.stamp
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test,parity]'

bench: .venv/test.stamp
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test,bench]'
	$(BIN)/python -m benchmarks.keras_stateful
	$(BIN)/python -m benchmarks.import_time
	$(BIN)/python -m benchmarks.compile_time
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.layers
	$(BIN)/python -m benchmarks.sequences
	$(BIN)/python -m benchmarks.scan_vs_keras
	$(BIN)/python -m benchmarks.text_generator

.venv/demo.stamp: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rnnjax needs Python 3.11 or newer, but $(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[experiments]'
	touch $@

.venv/test.stamp: .venv/demo.stamp
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[test]'
	touch $@

# Writes the lock anew from the newest versions that work together, the heavy peers among them,
# whose own versions stay free.
lock:
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test,parity]'
	$(BIN)/pip freeze --exclude-editable | grep -v -i -E '@|^(torch|tensorflow|triton|nvidia)' \
		| sort --ignore-case > requirements.lock
	rm -rf .venv

clean:
	rm -rf .venv build dist
