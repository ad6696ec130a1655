# Everything lives in .venv; `make serve` and `make test` need python3 (3.11 to 3.13, with venv) and nothing else prepared.

PYTHON ?= python3
UV_VERSION := $(shell sed -n 's/^uv==//p' constraints.txt)
INSTALL := .venv/bin/uv pip install --quiet --python .venv/bin/python --constraints constraints.txt --build-constraints constraints.txt

.PHONY: serve test check wheel-check constraints clean

serve: .venv/.serve
	.venv/bin/python -m serving

# Two at a time with a thread each: more would need more memory than small machines have.
test: .venv/.dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

wheel-check: .venv/.dev
	.ci/check_wheel

.venv/.uv: constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@

.venv/.serve: .venv/.uv pyproject.toml
	$(INSTALL) --editable '.[serve]'
	touch $@

.venv/.dev: .venv/.uv pyproject.toml
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/.serve

# The newest versions that fit pyproject.toml, for every supported Python; commit the result once the tests pass with it.
constraints: .venv/.uv
	.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --extra fuzz --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-package convmae-deploy --output-file constraints.txt pyproject.toml

clean:
	rm -rf .venv dist
