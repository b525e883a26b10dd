# Everything a developer does here. Needs Python >= 3.10 and make; `conformance` needs Node >= 18 too,
# `interop` and .ci/run Node >= 20.11.
#   make demo PYTHON=python3.12       another interpreter
#   make serve ARGS="--port 0"        options of the command
#   make test ARGS="-k append -x"     arguments for pytest
#   make test WORKERS=2               how many tests run at a time
#   make conformance STORE=memory INTERFACE=asgi
#   make conformance STORE=nats GATEWAYS=2
#   make interop ARGS="browser yjs"   some of the suites
#   make cluster ARGS="--folder DIR"  everything is kept there

# Tests start hundreds of processes; each would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
ARGS ?=
STORE ?= sqlite
INTERFACE ?= rsgi
GATEWAYS ?= 1
VENV ?= .venv
# Of pyproject.toml: what is installed beside the project.
GROUP ?= dev
BIN := $(VENV)/bin
# Modules are compiled as they are imported, most are not.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
PYTHONS ?= 3.10 3.13
SUITES ?= tests/drivers tests/seed tests/unit
# Most tests wait for servers, so that more of them run at a time than there are cores.
WORKERS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN) + 1)))
# What starts servers is shared with the tests. Scripts outside pytest find it here, as pytest does by `pythonpath`.
SHARED := $(CURDIR)/tests/support
DOCS := $(filter-out docs/xdk-behaviour.md,$(wildcard *.md docs/*.md)) benchmarks/README.md deploy/README.md xdk/README.md
# What needs no server, or one that starts in the process of the test.
FAST := tests/unit tests/property
# The fast tests, and the others that play machines without a socket: together they run every line and branch of these.
PURE := $(FAST) tests/firehose/test_machine.py tests/firehose/test_records.py tests/firehose/test_json_records.py
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: help demo demo-subscriptions serve cluster chat test test-pythons check coverage generate lint words format types docs conformance interop recording page behaviour parity bench clean

help:
	@echo "make demo         write 20,000 real records through a server that keeps being killed, and count them"
	@echo "make demo-subscriptions   the same records, handled by a pool of workers that is killed too"
	@echo "make serve        the server, on http://127.0.0.1:4437/v1/stream"
	@echo "make cluster      three NATS servers and two gateways over them, on free ports, until Ctrl-C"
	@echo "make chat         a chat whose answers survive a reload, on http://127.0.0.1:8000"
	@echo "make check        lint, types, and the fast tests with their coverage"
	@echo "make coverage     the fast tests: they run every line and branch of what decides"
	@echo "make test         the test suite"
	@echo "make test-pythons the client's tests on other Pythons; PYTHONS=\"3.10 3.13\" chooses"
	@echo "make lint types   ruff, codespell, words and widths; mypy --strict, and pyright for the public names"
	@echo "make generate     the sync side of client and firehose, made from the async side"
	@echo "make words        words that the project's English does without"
	@echo "make docs         the documentation site, into site/; ARGS=serve shows it on http://127.0.0.1:8000"
	@echo "make conformance  the protocol's public conformance suite (Node >= 18)"
	@echo "make interop      other clients, and Chromium, against our server (Node >= 20.11); ARGS=\"browser\" chooses"
	@echo "make page         the library of the inspector, from npm (after a change of tools/page/package.json)"
	@echo "make behaviour    docs/xdk-behaviour.md, from what the official xdk.streaming and ours do"
	@echo "make parity       the public names of the official packages: ARGS=record, then ARGS=page"
	@echo "make bench        the benchmarks of peers, server, client, firehose, cluster; ARGS=\"client --quick\" chooses"
	@echo "make format       let ruff rewrite what it can, wrap the documentation"
	@echo "make clean        remove .venv, node_modules and caches"

demo: $(VENV)/runtime.stamp
	@$(BIN)/durable-streams demo $(ARGS)

demo-subscriptions: $(VENV)/runtime.stamp
	@$(BIN)/durable-streams demo --workers $(ARGS)

serve: $(VENV)/runtime.stamp
	@$(BIN)/durable-streams serve $(ARGS)

cluster: $(VENV)/dev.stamp
	@$(BIN)/python tests/support/local_cluster.py $(ARGS)

chat: $(VENV)/dev.stamp
	@$(BIN)/python examples/chat/chat_app.py

test: $(VENV)/dev.stamp
	$(PYTEST) $(ARGS)

test-pythons:
	WORKERS=$(WORKERS) SUITES="$(SUITES)" .ci/pythons $(PYTHONS)

check: lint types coverage

# CI=true: Hypothesis takes the same examples each time, so that chance does not decide what is covered.
coverage: $(VENV)/dev.stamp
	CI=true $(PYTEST) -q --cov --cov-report=term $(PURE) $(ARGS)

generate: $(VENV)/dev.stamp
	$(BIN)/python tools/make_sync.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/python tools/words.py
	$(BIN)/python tools/wrap.py --check $(DOCS)
	$(BIN)/python tools/make_sync.py --check

words: $(VENV)/dev.stamp
	@$(BIN)/python tools/words.py $(ARGS)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python tools/wrap.py $(DOCS)

types: $(VENV)/dev.stamp
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing

# The variable: its authors advertise another tool in each run.
docs: $(VENV)/docs.stamp
	@test -e tools/site/mermaid.min.js || tools/site/mermaid
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build)

conformance: $(VENV)/dev.stamp
	PYTHONPATH=$(SHARED) $(BIN)/python tests/conformance/run --store $(STORE) --interface $(INTERFACE) --gateways $(GATEWAYS) $(ARGS)

interop: $(VENV)/dev.stamp
	PYTHONPATH=$(SHARED) $(BIN)/python tests/interop/run $(ARGS)

recording: $(VENV)/dev.stamp
	node tools/record_chat.mjs $(BIN)/python $${INTEROP_CHROMIUM:-$$(command -v chromium)}
# The one library of the inspector, with Preact inside; what it makes is committed, and goes into the wheel.
page:
	cd tools/page && npm ci --silent
	cp tools/page/node_modules/htm/preact/standalone.module.js src/durable_streams/server/page/preact.js
	cp tools/page/node_modules/htm/LICENSE src/durable_streams/server/page/preact.LICENSE.txt

behaviour: $(VENV)/dev.stamp
	PYTHONPATH=$(SHARED):$(CURDIR)/benchmarks $(BIN)/python tests/firehose/behaviour $(ARGS)

parity: $(VENV)/dev.stamp
	PYTHONPATH=$(CURDIR)/xdk/src $(BIN)/python tests/parity $(ARGS)

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-* site tests/conformance/node_modules tests/interop/node_modules tools/page/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# The stamps make a second run start at once; a changed pyproject.toml installs again.
$(VENV)/pip.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "durable-streams needs Python >= 3.10; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/runtime.stamp: $(VENV)/pip.stamp pyproject.toml
	$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp
	$(INSTALL) --group $(GROUP)
	@touch $@

$(VENV)/docs.stamp: $(VENV)/dev.stamp
	$(INSTALL) --group docs
	@touch $@
