# Everything here does its own set-up: Python 3.11+ and make are all it takes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most of a test is waiting for the program it has started: eight at once keep two cores busy.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$(( n > 8 ? n : 8 )))
# At full depth tests load the machine by themselves, and have promises to keep in time.
FEWER ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$(( n > 4 ? n : 4 )))
# The suite starts Python hundreds of times: it must not compile everything each time anew. What it
# prints is buffered, as it is on most machines.
PYTEST = PYTHONUNBUFFERED= PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder

# What goes into the package, or makes it.
PACKAGED = debian systemd scripts docs actors tenantry daemon.py config.toml constraints.txt pyproject.toml \
	CHANGELOG.md LICENSE README.md

.DEFAULT_GOAL := help
.PHONY: help demo test test-thorough check bench docs deb sbom audit deploy-tools browser-tools format clean

help: ## what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runs ## the main job, end to end, on this machine
	@$(BIN)/tenantry demo

test: $(VENV)/.compiled broker ## the whole test suite, against a real RabbitMQ and a real PostgreSQL
	@$(PYTEST) $(PYTEST_ARGS)

test-thorough: $(VENV)/.compiled broker ## the same at full depth, every process started as users start it
	@HYPOTHESIS_PROFILE=thorough TENANTRY_TEST_PRELOADED=no $(PYTEST) -n $(FEWER) --timeout=1800 $(PYTEST_ARGS)

check: $(VENV)/.installed ## formatting, lint, types, import rules, recipes that were not followed
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q -n 0 -p no:cacheprovider tests/recipes

bench: $(VENV)/.installed broker ## the benchmarks, side by side with the peers
	@$(BIN)/python -m bench $(BENCH_ARGS)

docs: $(VENV)/.installed ## the manual as a site, in build/site
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@mkdir -p build
	@# Not -q: what is not said is not counted either, and then no broken link fails.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict >build/docs.log 2>&1 || \
		{ cat build/docs.log >&2; exit 1; }
	@echo "build/site/index.html"

deb: ## the Debian package, in build: for the Debian it is made on (docs/debian.md)
	@dpkg-checkbuilddeps -I || \
		{ echo "A Debian package needs Debian's own tools: apt build-dep ./" >&2; exit 1; }
	@rm -rf build/deb
	@mkdir -p build/deb
	@cp -a $(PACKAGED) build/deb/
	@cd build/deb && DEB_RULES_REQUIRES_ROOT=no DESTINATION=.. debian/rules binary
	@ls build/tenantry_*.deb

sbom: $(VENV)/.audits ## what the program brings along, as CycloneDX, in build/sbom.json
	@$(BIN)/python -m scripts.bill sbom build/sbom.json

audit: $(VENV)/.audits ## asks for known vulnerabilities of what it brings along
	@$(BIN)/python -m scripts.bill audit

deploy-tools: $(VENV)/.installed ## what the tests hold deploy/ with: promtool, hadolint, schemas; AsyncAPI's parser
	@sh scripts/ensure-prometheus.sh $(VENV)/prometheus
	@sh scripts/ensure-asyncapi.sh $(VENV)/asyncapi
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[deploy]'

browser-tools: $(VENV)/.installed ## what the tests look at the page with: Chromium, Playwright, axe
	@sh scripts/ensure-chromium.sh
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[browser]'

format: $(VENV)/.installed ## format and sort
	@$(BIN)/ruff check --fix --select I .
	@$(BIN)/ruff format .

clean: ## remove what was made here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info build

.PHONY: broker
broker:
	@sh scripts/ensure-rabbitmq.sh

# What runs the program, and no more: the demo shall not wait for what develops it.
$(VENV)/.runs: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tenantry needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/.installed: $(VENV)/.runs
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.audits: $(VENV)/.installed
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
		-e '.[audit,iggy,jwks,tracing]'
	@touch $@

# Each of the processes that test would compile all modules and assertions by itself; they read
# what one has compiled.
$(VENV)/.compiled: $(VENV)/.installed
	@echo "Compiling the tests ..."
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only -qq >/dev/null || true
	@touch $@
