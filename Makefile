# `make` alone lists the targets. Everything is installed into $(VENV); nothing else on the machine is changed, except
# by `make system-deps`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
SPEC ?= specs/digits.yaml
# What is installed. Without torch (`EXTRAS=cpu,optimize,triton,s3,evidence`) its stages say so, and its tests are skipped.
EXTRAS ?= cpu,torch,optimize,triton,s3,evidence,mlflow,kubernetes,kubernetes-lint
# What tests take besides, so that nothing is skipped that can run: what only some stages need, and only with torch.
TEST_EXTRAS ?= $(if $(findstring torch,$(EXTRAS)),huggingface$(comma)images$(comma)modelopt$(comma)sklearn$(comma)tensorflow$(comma)tensorrt-rtx)
comma := ,
# The first interpreter that really runs and can make environments: version managers put shims on PATH for versions
# that are not installed, and Debian splits off the modules that venv needs.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -Ic 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		>/dev/null 2>&1 && echo "$$python" && break; done)

# One thread per process: more only get in each other's way, in measurements most of all.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start hundreds of processes, and each would compile all of shipctl, and pytest every test, again.
unexport PYTHONDONTWRITEBYTECODE

# Where `make kube` puts a Kubernetes control plane, and the variable by which tests (like envtest's) find one.
KUBE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/shipctl-kube
ifneq ($(wildcard $(KUBE)/bin/kube-controller-manager),)
export KUBEBUILDER_ASSETS ?= $(KUBE)/bin
endif

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
TORCH := $(shell grep '^torch==' constraints.txt)
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
PYTEST := $(BIN)/python -m pytest
# More workers than cores: many tests wait for servers.
JOBS ?= 4

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: $(RUNTIME) ## Install, bring the digits model to a real Triton server, and see that a second apply has nothing to do.
	$(BIN)/shipctl apply $(SPEC)
	$(BIN)/shipctl apply $(SPEC)
	$(BIN)/shipctl status $(SPEC)

.PHONY: install
install: ## Install (or install again, after a change of the entry points) shipctl and the development tools.
	@rm -f $(RUNTIME) $(DEVELOPMENT)
	@$(MAKE) --no-print-directory $(DEVELOPMENT)

# A stamp made for other extras does not count.
ifneq ($(shell cat $(RUNTIME) 2>/dev/null),$(EXTRAS))
.PHONY: $(RUNTIME)
endif

# torch first, and exactly the tested version: whatever else asks for it is then content.
$(RUNTIME): pyproject.toml constraints.txt
	@[[ -n "$(PYTHON)" ]] || { \
		echo "no Python 3.11 to 3.13 with venv found; run 'make system-deps', or name one: make PYTHON=/path/to/python" >&2; \
		exit 1; }
	[[ -x $(BIN)/python ]] || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --upgrade pip
ifneq ($(findstring torch,$(EXTRAS)),)
	$(PIP) install --quiet --constraint constraints.txt '$(TORCH)'
endif
	$(PIP) install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[$(EXTRAS)]'
	@echo '$(EXTRAS)' > $@

$(DEVELOPMENT): $(RUNTIME)
	$(PIP) install --quiet --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[$(EXTRAS)$(if $(TEST_EXTRAS),$(comma)$(TEST_EXTRAS))]' --group dev
	@touch $@

.PHONY: test
test: $(DEVELOPMENT) ## Run every test that this machine can run.
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: coverage
coverage: $(DEVELOPMENT) ## The same, and tell which lines no test has run; takes half as long again.
	$(BIN)/coverage erase
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

.PHONY: test-fast
test-fast: $(DEVELOPMENT) ## Run the quick tests of core, the command line and the release stages. About a minute.
	$(PYTEST) -n 3 --dist loadfile -m "not slow and not triton and not torch and not cluster" \
		tests/core tests/cli tests/plugins/deploy $(ARGS)

.PHONY: kube
kube: ## Build, once, the Kubernetes control plane that tests use, of Debian's packages. About 4 minutes.
	@tests/control_plane/build.sh '$(KUBE)'

.PHONY: lint
lint: $(DEVELOPMENT) ## Check style, format, types, and who imports whom.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(DEVELOPMENT) ## Format the code, and repair what ruff can.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: docs
docs: $(DEVELOPMENT) ## Write the pages of docs/stages from the stages themselves.
	$(BIN)/python docs/make_stages.py

.PHONY: bench
bench: bench-engine bench-optimise ## Measure shipctl beside its peers, and write the tables of the docs.

.PHONY: bench-engine
bench-engine: $(DEVELOPMENT) ## Measure the engine's own cost and shipctl's start, beside its peers.
	$(BIN)/python benchmarks/startup.py $(ARGS)
	$(BIN)/python benchmarks/engine.py $(ARGS)

.PHONY: bench-optimise
bench-optimise: $(DEVELOPMENT) ## Find the best variant of two models beside Olive, and write the table of docs/variants.md.
	$(BIN)/python benchmarks/optimise.py $(ARGS)
	$(BIN)/python benchmarks/optimise.py --table docs/variants.md

.PHONY: bench-release
bench-release: $(DEVELOPMENT) ## Measure what the door adds, how sure the analysis is, and releases while something breaks.
	$(BIN)/python benchmarks/proxy.py $(ARGS)
	$(BIN)/python benchmarks/analysis.py $(ARGS)
	$(BIN)/python benchmarks/release.py $(ARGS)

.PHONY: bench-store
bench-store: $(DEVELOPMENT) ## Measure publishing to S3 beside aws, boto3 and minio, on a RADOS gateway (make system-deps).
	$(BIN)/python benchmarks/store.py $(ARGS)

# Debian packages: command that tells whether it is there, then the package. chromium looks at reports in a test, ceph's
# gateway is a real S3 server, skopeo reads what is packaged as an OCI image, prometheus measures releases,
# Alertmanager calls for the way back, dpkg-source unpacks what `make kube` builds, g++ compiles an extension of ModelOpt.
SYSTEM_DEPS := chromium:chromium ceph-mon:ceph-mon ceph-osd:ceph-osd radosgw:radosgw ceph:ceph-common skopeo:skopeo \
	prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager dpkg-source:dpkg-dev g++:g++
# Triton's Python backend loads an interpreter, 3.12 or older, as a shared library, which Debian splits off.
SERVER_PYTHON = for python in python3.11 python3.12 python3.10 python3; do \
	"$$python" -Ic 'import ensurepip, os, sys, sysconfig, venv; name = sysconfig.get_config_var("INSTSONAME"); \
		sys.exit(sys.version_info > (3, 13) or ".so" not in name \
		or not os.path.exists(os.path.join(sysconfig.get_config_var("LIBDIR"), name)))' >/dev/null 2>&1 && break; done

.PHONY: system-deps
system-deps: ## Install the few things that pip cannot bring (Debian and Ubuntu; as root or through sudo).
	@missing=(); \
	for pair in $(SYSTEM_DEPS); do command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair#*:}"); done; \
	[[ -n "$(PYTHON)" ]] || missing+=(python3 python3-venv); \
	[[ "$$(uname -sm)" != "Linux x86_64" ]] || $(SERVER_PYTHON) || missing+=(python3-venv libpython3-dev); \
	[[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || missing+=(debian-archive-keyring); \
	if (( $${#missing[@]} == 0 )); then echo "system packages: all there"; exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "there is no apt-get here; install what provides these by your own package manager: $${missing[*]}" >&2; exit 1; fi; \
	as_root=(); \
	if (( EUID != 0 )); then \
		command -v sudo >/dev/null || { echo "run this as root: apt-get install $${missing[*]}" >&2; exit 1; }; \
		as_root=(sudo); fi; \
	apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120); \
	echo "system packages: installing $${missing[*]}"; \
	"$${as_root[@]}" "$${apt[@]}" update; \
	"$${as_root[@]}" "$${apt[@]}" install -y --no-install-recommends "$${missing[@]}" >/dev/null

.PHONY: clean
clean: ## Stop what the example serves, and remove everything that was made here, the environment too.
	@if [[ -x $(BIN)/shipctl && -d .shipctl ]]; then $(BIN)/shipctl down $(SPEC) || true; fi
	rm -rf $(VENV) build dist htmlcov .shipctl .cache .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis
	find core plugins templates tests specs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
