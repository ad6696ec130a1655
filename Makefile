# Everything lives in .venv; `make serve` and `make test` need python3 (3.11 to 3.13, with venv) and nothing else prepared.

PYTHON ?= python3
INSTALL := .venv/bin/uv pip install --quiet --python .venv/bin/python --constraints constraints.txt --build-constraints constraints.txt
# All of the project's packages, none but files whose hashes stand in constraints.txt; our own has none.
INSTALL_PINNED := $(INSTALL) --require-hashes --requirement pyproject.toml
INSTALL_PROJECT := $(INSTALL) --no-deps --editable .
# Three at a time with a thread each, for two cores: one mostly waits for a server or a browser. They take 8 GB together.
# tests/conftest.py orders them.
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder
COMPILE := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links

# Packages are installed without bytecode: a process that may not write it compiles all that it imports, torch for 8 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test quick check wheel-check gpu-check constraints clean

serve: .venv/.serve
	.venv/bin/python -m serving

test: .venv/.dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(PARALLEL)

# What a person runs while working: everything but the tests that take a moment (servers, browsers, exports, training).
quick: .venv/.dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest $(PARALLEL) -m 'not slow'

check: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

wheel-check: .venv/.dev
	.ci/check_wheel

# Fetches 1.5 GB into an environment that is deleted again, so it is part of no other target.
gpu-check: .venv/.dev
	.ci/check_gpu_libraries

.venv/.uv: constraints.txt
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > .venv/uv.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
	touch $@

.venv/.serve: .venv/.uv pyproject.toml
	$(INSTALL_PINNED) --extra serve
	$(INSTALL_PROJECT)
	touch $@

.venv/.dev: .venv/.uv .venv/.kserve pyproject.toml
	$(INSTALL_PINNED) --extra dev
	$(INSTALL_PROJECT)
	touch $@ .venv/.serve

# A client of servers whose requirements contradict ours, so it lives in an environment of its own.
.venv/.kserve: .venv/.uv tests/serving/clients/kserve.txt
	.venv/bin/uv venv --quiet --clear --python $(PYTHON) .venv/kserve
	.venv/bin/uv pip install --quiet --python .venv/kserve/bin/python --require-hashes --requirement tests/serving/clients/kserve.txt
	touch $@

# The newest versions that fit pyproject.toml, for every supported Python, with the hashes of their files, and of these
# what a bento installs; commit the result once the tests pass with it.
constraints: .venv/.uv
	$(COMPILE) --upgrade --extra dev --extra peers --extra fuzz --no-emit-package convmae-deploy --output-file constraints.txt pyproject.toml
	for name in requirements requirements-openvino requirements-gpu; do \
		$(COMPILE) --constraints constraints.txt --output-file serving/$$name.txt serving/$$name.in || exit 1; done
	$(COMPILE) --upgrade --output-file tests/serving/clients/kserve.txt tests/serving/clients/kserve.in

clean:
	rm -rf .venv dist
