# Three commands for a newcomer: `make demo`, `make check` and `make test`. Each makes a virtual environment if it is
# not there: .venv, or .venv-python3.13 with PYTHON=python3.13.

PYTHON ?= python3
VENV := .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
LOCK := requirements.lock
# Each takes a half, so that what a file makes for all of its tests is made once, and then what is left.
WORKERS := -n 2 --dist worksteal
INSTALL = $(BIN)/pip install --quiet --constraint $(LOCK) --editable
# What the tests import of the extras; what else they need is the group `test` of pyproject.toml.
EXTRAS := .[cookbook,export,interop,language-models]

# What every version of JAX, Flax and NumPy has to pass: the cells, their laws, the wrappers, the package,
# the training but that on several devices, and what the writers know of JAX.
CORE := $(addprefix tests/test_,$(addsuffix .py,arguments cells laws flax_wrappers package packing \
	explain export prepare onehot fused_forms primitive)) rnnjax/cells rnnjax/engine rnnjax/layers rnnjax/linen.py rnnjax/nnx.py \
	$(filter-out %/test_sharding.py %/test_devices.py,$(wildcard tests/training/test_*.py)) \
	tests/interop/test_jaxprs.py
# What .ci/run tests with the newest JAX: the core, the rooms whose files or programs leave the library, and the
# examples of all docstrings.
LIBRARY := $(filter-out tests/training/% tests/interop/% rnnjax/%,$(CORE)) $(addprefix tests/,interop training text test_gallery.py) rnnjax

# In turn, also with -j: two pips in one environment at once would spoil it. `make test` and `make check`
# call make again for what they do side by side.
ifndef SIDE_BY_SIDE
.NOTPARALLEL:
endif

.PHONY: demo check quick test tests test-programs durations test-slow test-cookbook test-core test-library test-oldest test-newest mutants nightly peers parity bench accelerators accelerators-gpu cookbook \
	docs dist tagged lint test-shard lock clean

demo: $(VENV)/demo.stamp
	$(BIN)/python -m experiments.alphabet
	$(BIN)/python -m experiments.text_generator train --corpus python-docs --layers 1 \
		--hidden-size 256 --batch-size 32 --seq-length 64 --carry-state --epochs 12 \
		--learning-rate 4e-3 --schedule cosine --clip-norm 1 --sample-temperature 0.7 \
		--sample-length 100
	$(BIN)/python -m experiments.text_generator generate --prime "The " --length 400 --temperature 0.7

# Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each worker and each program that a test
# starts would compile every file again: 0.04 of the time of `make test`.
check test tests test-programs durations test-slow test-cookbook test-core test-library test-shard mutants docs: export PYTHONDONTWRITEBYTECODE =

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Side by side: one process of linters and two of tests end a quarter of a minute sooner than in turn.
test:
	$(MAKE) --jobs 2 SIDE_BY_SIDE=1 lint tests

tests: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS) -m 'not slow and not docs and not programs'

# The programs of experiments/, a quarter of all tests' time; `make test` takes one quick test of each.
test-programs: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS) -m 'programs and not slow and not docs' tests/experiments experiments

# The linters, the types, and of the tests that are quick, by what tests/durations.py has measured, those
# that the change since main can break; all of them where nothing has changed.
check:
	$(MAKE) --jobs 2 SIDE_BY_SIDE=1 lint quick

quick: $(VENV)/test.stamp
	$(BIN)/python -m tests.affected $(WORKERS)

durations: $(VENV)/test.stamp
	$(BIN)/python -m tests.durations

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS) -m slow

# The slow ones among the tests of the cookbook: each program learns what is made for it.
test-cookbook: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS) -m slow tests/experiments/cookbook

test-core: $(VENV)/core.stamp
	$(BIN)/python -m pytest $(WORKERS) $(CORE)

test-library: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS) $(LIBRARY)

# One part of all tests, for machines side by side: `make test-shard SHARD=1 SHARDS=4`. LOCK=/dev/null
# takes the newest versions of everything.
SHARD := 1
SHARDS := 4
FILES = $(sort $(wildcard tests/test_*.py tests/*/test_*.py tests/*/*/test_*.py) $(wildcard rnnjax/*) experiments)
test-shard: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS) \
		$(shell printf '%s\n' $(FILES) | grep -v -E 'py.typed|__pycache__' | awk 'NR % $(SHARDS) == $(SHARD) % $(SHARDS)')

# With the lowest versions that pyproject.toml allows, from a lock of their own: what they bring along
# stays what it was when the tests passed. That JAX complains of every program it finds in its cache.
test-oldest:
	JAX_ENABLE_COMPILATION_CACHE=false $(MAKE) test-core PYTHON=python3.11 VENV=.venv-oldest LOCK=requirements-oldest.lock

# The tests against PyTorch and its company run where `make peers` has been done, and those against
# TensorFlow too, most of them slow, where `make parity` has; elsewhere they are skipped, and `make test`
# says so at its end. TORCH may be options of pip that choose PyTorch's wheels for CPUs, because those
# for cards bring the libraries of the cards along; it is empty by default.
peers parity: $(VENV)/test.stamp
	$(INSTALL) '$(EXTRAS)' --group test --group $@ $(TORCH)

# QUICK=--quick tries each with tiny shapes.
BENCHMARKS := import_time compile_time memory layers sequences scan_vs_keras text_generator keras_programs
bench: $(VENV)/test.stamp
	$(INSTALL) '$(EXTRAS)' --group test --group bench
	$(BIN)/python -m benchmarks.keras_stateful
	set -e; for each in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$each $(QUICK); done

# All that is slow, each night: what the heavy peers compute too, all slow tests, faults drawn by the day,
# the lowest versions and the newest of everything, each benchmark once. It goes on where a part fails, and
# says at its end how long each took. A release needs it green of its commit.
NIGHTLY := parity lint tests test-programs test-slow mutants test-oldest test-newest bench
nightly: QUICK = --quick
nightly:
	@failed=; table=; for part in $(NIGHTLY); do \
		began=$$(date +%s); ended=green; $(MAKE) $$part QUICK=$(QUICK) || { ended=FAILED; failed="$$failed $$part"; }; \
		table="$$table$$(printf '\n%-12s %6d s  %s' $$part $$(($$(date +%s) - began)) $$ended)"; done; \
	echo "$$table"; test -z "$$failed"

mutants: $(VENV)/test.stamp
	$(BIN)/python -m tests.mutants --draw 3 --seed $$(date +%Y%j) --jobs 2

test-newest:
	$(MAKE) test-library PYTHON=$(NEWEST) VENV=.venv-newest LOCK=/dev/null
NEWEST := $(firstword $(foreach v,3.14 3.13 3.12,$(shell command -v python$(v) >/dev/null && python$(v) -c 'import ensurepip' 2>/dev/null && echo python$(v))) $(PYTHON))

# Compiles for a TPU, or a GPU, on a machine that has neither, and fails where a program got worse than in
# the committed table. The compilers are wheels of 0.2 and 1.6 GB, each in an environment of its own.
# OPTIONS="--only MGUCell --keep" writes the rows of that cell into the table.
accelerators: $(VENV)-tpu/stamp
	JAX_PLATFORMS=cpu $(VENV)-tpu/bin/python -m benchmarks.accelerators --target v5e $(OPTIONS)

accelerators-gpu: $(VENV)-cuda13/stamp
	JAX_PLATFORMS=cpu $(VENV)-cuda13/bin/python -m benchmarks.accelerators --target h100 $(OPTIONS)

$(VENV)-%/stamp: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --constraint $(LOCK) --editable '.[export]' 'jax[$*]'
	touch $@

# Every application, on the real data (DATA=FOLDER takes it from there): fails where a bound is missed.
cookbook: $(VENV)/demo.stamp
	$(INSTALL) '.[cookbook]'
	$(BIN)/python -m experiments.cookbook $(addprefix --data ,$(DATA))

# The site, in site/: `python -m http.server -d site` shows it. The addresses are those of pyproject.toml; a link to
# the repository stands on each page as soon as that is no longer an example's.
url = $(shell sed -n 's/^$(1) = "\(.*\)"$$/\1/p' pyproject.toml)
docs: $(VENV)/docs.stamp $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS) -m 'docs and not slow' tests
	sed -e '/^## Two commands/,$$d' -e 's|](docs/|](|g' README.md > docs/index.md
	$(BIN)/python docs/notebooks.py
	SITE_URL=$(call url,Documentation) REPO_URL=$(filter-out %.example.org/source,$(call url,Source)) \
		$(BIN)/python -m zensical build --strict --clean --config-file mkdocs.yml

# What a package index gets, in dist/, checked.
dist: $(VENV)/release.stamp
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# Before a release: fails where the tag is not the version, or the addresses are still an example's.
tagged:
	test '$(TAG)' = 'v$(call url,version)'
	! grep -n 'example.org' pyproject.toml

# A virtual environment, with a pip that knows groups: Python 3.11 brings pip 23.
$(VENV)/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rnnjax needs Python 3.11 or newer, but $(PYTHON) is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	touch $@

$(VENV)/demo.stamp: pyproject.toml $(LOCK) | $(VENV)/pip.stamp
	$(INSTALL) '.[experiments]'
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(INSTALL) '$(EXTRAS)' --group test
	touch $@

# What `make test-core` needs: no program, no peer, no linter.
$(VENV)/core.stamp: pyproject.toml $(LOCK) | $(VENV)/pip.stamp
	$(INSTALL) '.[export,interop]' --group test-core
	touch $@

$(VENV)/docs.stamp: pyproject.toml $(LOCK) | $(VENV)/pip.stamp
	$(INSTALL) . --group docs
	touch $@

$(VENV)/release.stamp: pyproject.toml $(LOCK) | $(VENV)/pip.stamp
	$(INSTALL) . --group release
	touch $@

# Writes the locks anew: one for every Python, of the newest versions that work together, the heavy peers
# among them, whose own versions stay free, and one of the oldest.
lock: COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--no-python-downloads --no-header --no-annotate pyproject.toml \
	--extra cookbook --extra export --extra interop --extra language-models --group test
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	$(COMPILE) --group parity --group docs --group release > .venv-lock/all
	grep -v -E '^(torch|tensorflow|triton|nvidia|cuda)' .venv-lock/all > requirements.lock
	$(COMPILE) --resolution lowest-direct > requirements-oldest.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv* build dist site
