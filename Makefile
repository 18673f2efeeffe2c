# Two commands do everything on a new machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Files of tests go to as many processes as there are cores, four at most; TOGETHER= runs them one by one.
TOGETHER = -n auto --maxprocesses 4 --dist loadfile
READY := .venv/ready
PAGES = $(shell grep -rl "\[\[\[cog" README.md docs)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check cluster fast fix lint page-types house docs serve bench bench-atlas bench-family portable family release clean help

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## edit the sample clip and say where to look
	$(BIN)/retouch demo demo --force

test: $(READY)  ## the tests, without the slow ones
	$(BIN)/python -m pytest $(TOGETHER) -m "not slow and not gpu"

fast: $(READY)  ## unit tests only
	$(BIN)/python -m pytest $(TOGETHER) tests/unit -m "not slow and not gpu"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/python tools/house.py --check

TYPESCRIPT := 5.9.3
AXE := 4.11.0
NODE_READY := .venv/node/typescript-$(TYPESCRIPT)_axe-core-$(AXE)

page-types: $(READY)  ## the types of the page's scripts, and axe-core for its tests, where npm is at hand
	@test -f "$(NODE_READY)" || { command -v npm > /dev/null \
	  && npm install --silent --no-audit --no-fund --no-save --no-package-lock --fetch-retries=0 \
	    --fetch-timeout=20000 --prefix .venv/node typescript@$(TYPESCRIPT) axe-core@$(AXE) \
	  && touch "$(NODE_READY)"; } || true
	@if test -f "$(NODE_READY)"; then node .venv/node/node_modules/typescript/bin/tsc -p tools/page.tsconfig.json; \
	else echo "the page's types are not checked: npm is missing, or reaches no registry"; fi

check: lint page-types test  ## everything that must pass
	$(BIN)/python -m pytest $(TOGETHER) -m "slow and not gpu"
	$(BIN)/python tools/layers_picture.py --check
	$(BIN)/cog --check --verbosity=1 --check-fail-msg="run make fix" -I tools $(PAGES)
	$(BIN)/mkdocs build --strict --quiet
	$(MAKE) cluster

cluster: $(READY)  ## the tests on a Ray cluster, where Ray can be had
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster]' || echo "there is no Ray"
	$(BIN)/python -m pytest tests/e2e/test_cluster.py -m slow

fix: $(READY)  ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/layers_picture.py
	$(BIN)/cog -r --verbosity=1 -I tools $(PAGES)

house: $(READY)  ## how the code reads, in figures: benchmarks/house.md
	$(BIN)/python tools/house.py

docs: $(READY)  ## the pages, into site/
	$(BIN)/cog -r --verbosity=1 -I tools $(PAGES)
	$(BIN)/mkdocs build --strict

serve: $(READY)  ## the pages, on this machine
	$(BIN)/mkdocs serve

bench: bench-atlas bench-family  ## every figure in benchmarks/
	$(BIN)/python benchmarks/media_memory.py
	$(BIN)/python benchmarks/fatezero.py
	$(BIN)/python benchmarks/videoshop.py accuracy
	$(BIN)/python benchmarks/videoshop.py length

bench-atlas: $(READY)
	$(BIN)/python benchmarks/atlas.py

bench-family: $(READY)
	$(BIN)/python benchmarks/family.py

portable: $(READY)  ## the tests under kernels of other processors, 2 threads and load (hours)
	$(BIN)/python tools/portable.py suite

family: $(READY)  ## train the embedded models from nothing (hours on a CPU)
	$(BIN)/python tools/family/build.py

release: check  ## the changelog of VERSION=x.y.z, and its tag
	test -n "$(VERSION)"
	grep -q '^version = "$(VERSION)"$$' pyproject.toml
	grep -q '^__version__ = "$(VERSION)"$$' src/retouch/__init__.py
	$(BIN)/towncrier build --yes --version $(VERSION)
	git commit --all --message "Release $(VERSION)"
	git tag --annotate "v$(VERSION)" --message "retouch $(VERSION)"

clean:
	rm -rf .venv site demo
