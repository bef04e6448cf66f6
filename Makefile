# The commands of the project; `make` lists them. Needs make and Python 3.11 or newer.

VENV := .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

# The first Python that runs and is new enough. On a machine with version shims, a name may
# be found although the program does not run, so each name is tried.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)

# uv installs in seconds. It does not read pip.conf, so it is given the index and the
# certificate of pip.conf. It must not read uv.toml, which can make it build packages. It
# trusts its cache: with links in place of copies, an edit in .venv would change the cache.
INSTALLER ?= uv
INSTALL_pip = $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV_ENV = UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python \
	-m pip config get global.index-url 2>/dev/null)}}" UV_LINK_MODE=copy UV_NO_CONFIG=1 \
	SSL_CERT_FILE="$${SSL_CERT_FILE:-$${PIP_CERT:-$$($(BIN)/python \
	-m pip config get global.cert 2>/dev/null)}}"
UV = $(UV_ENV) $(BIN)/uv
INSTALL_uv = $(UV) pip install --quiet --python $(BIN)/python
# Wheels only: installing a wheel runs no code of its package.
LOCKED = --require-hashes --only-binary :all: -r

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow-test test-again browser-test compose-test serve fleet deploy check audit lock image sbom digests package package-test clean fuzz

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(INSTALLED)  ## make .venv with everything in it (other commands do this when needed)

demo: setup  ## place a call offline: fake Twilio, fake model, the real bridge
	@$(BIN)/bridge demo

# Bytecode is always written: without bytecode, each worker compiles all modules.
LOOP ?= asyncio
test: setup  ## run the tests (LOOP=uvloop: on uvloop; tests of the edges run on both loops)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist worksteal \
		--event-loop $(LOOP)

slow-test: setup  ## run the tests that take seconds each: loads, deploys, restarts, full disks
	@$(BIN)/python -m pytest -m slow -n 4 --dist worksteal --event-loop $(LOOP)

test-again: setup  ## run the tests that failed in the last `make test` or `slow-test` again, one at a time
	@$(BIN)/python -m pytest --last-failed --last-failed-no-failures none \
		-m 'not browser and not compose and not package' --event-loop $(LOOP)

browser-test: setup  ## run the tests that need Chromium
	@$(BIN)/python -m pytest -m browser tests/browser

compose-test: setup  ## run the tests that need a Docker engine
	@$(BIN)/python -m pytest -m compose tests/compose --durations 15

# Without a public url and a token, only developers call. The bridge then serves unsigned
# requests, on this machine alone, and logs this when it starts. An empty value counts as
# unset.
serve: setup  ## run the bridge with the settings of the environment and .env (OPTIONS=--reload)
	@said() { [ -n "$$(eval echo "\$${$$1:+said}")" ] || grep -Eqs \
		"^[[:space:]]*(export[[:space:]]+)?$$1[[:space:]]*=[[:space:]]*[\"']?[^[:space:]\"'#]" .env; }; \
	said BRIDGE_PUBLIC_URL || said TWILIO_AUTH_TOKEN || said TWILIO_AUTH_TOKEN_FILE || \
	said BRIDGE_INSECURE || export BRIDGE_INSECURE=1; \
	exec $(BIN)/bridge serve $(OPTIONS)

fleet: setup  ## run HAProxy, Redis and three bridges on this machine
	@exec $(BIN)/python scripts/fleet.py --bridges 3

deploy:  ## replace the bridges of docker compose without losing a call
	@python3 scripts/deploy.py $(OPTIONS)

check: setup  ## check lint, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

audit: setup  ## look for known advisories against the locked packages (asks osv.dev)
	@PATH="$(BIN):$$PATH" scripts/audit.sh requirements-dev.lock $(OPTIONS)

# The fuzzer has its own environment, because atheris has wheels for few Pythons.
FUZZ := .venv-fuzz
SECONDS ?= 60
fuzz: $(FUZZ)/.installed  ## look for inputs that break the bridge (22 targets, SECONDS=60 each)
	@$(FUZZ)/bin/python -m tests.fuzz --seconds $(SECONDS)

$(FUZZ)/.installed: requirements-dev.lock pyproject.toml | setup
	$(BIN)/python -m venv $(FUZZ)
	@install() { $(UV) pip install --quiet --python $(FUZZ)/bin/python "$$@"; }; \
	install $(LOCKED) requirements-dev.lock && install --only-binary :all: --group fuzz \
		&& install --no-deps --no-build-isolation -e . || { \
		echo "atheris cannot be installed for this Python: it has wheels for few Pythons."; \
		echo "Try another Python: rm -rf $(VENV) && make fuzz PYTHON=python3.11"; exit 1; } >&2
	@touch $@

# One resolution for all Pythons: all locks have the same versions. UPGRADE='--upgrade' or
# UPGRADE='--upgrade-package NAME' chooses the versions again.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command 'make lock'
UPGRADE ?=
LOCKS := requirements.lock requirements-dev.lock requirements-bootstrap.lock
lock: $(BIN)/uv  ## resolve pyproject.toml into the locks (UPGRADE=--upgrade: newest versions)
	@for lock in $(LOCKS); do cp $$lock $$lock.new || : >$$lock.new; done
	@dev=requirements-dev.lock.new && \
	{ $(COMPILE) $(UPGRADE) --extra voice --extra reload --group dev -o $$dev pyproject.toml && \
	$(COMPILE) -c $$dev --extra uvloop -o requirements.lock.new pyproject.toml && \
	$(COMPILE) -c $$dev --group bootstrap -o requirements-bootstrap.lock.new; } \
		|| { rm -f requirements*.lock.new; exit 1; }
	@for lock in $(LOCKS); do \
		cmp -s $$lock.new $$lock && rm $$lock.new || mv $$lock.new $$lock; done

# If PYTHON_IMAGE is set in the environment, it replaces the base of the Dockerfile.
IMAGE ?= twilio-realtime-bridge
BUILD = DOCKER_BUILDKIT=1 docker build $${PYTHON_IMAGE:+--build-arg PYTHON_IMAGE}
image:  ## build the image, with its version and revision in its labels
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); \
	revision=$$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown); \
	$(BUILD) --build-arg IMAGE_VERSION="$$version" --build-arg IMAGE_REVISION="$$revision" \
		--tag $(IMAGE) .

sbom:  ## write sbom.json: the Python packages of the image, as CycloneDX (needs docker)
	@$(BUILD) --target sbom-file --output . .

# DIGESTS='Dockerfile ...' limits the command to these files.
DIGESTS ?= Dockerfile docker-compose.yml $(wildcard deploy/kubernetes/*.yaml)
digests: setup  ## renew the digests of the images (asks their registries)
	@$(BIN)/python -m scripts.digests $(DIGESTS)

package: setup  ## build the package into dist/: an sdist and a wheel
	@rm -rf dist
	@scripts/package.sh $(BIN)/python dist
	@ls -s dist/*

package-test: setup  ## install the built package in an empty environment, and run it
	@$(UV_ENV) $(BIN)/python -m pytest -m package tests/package --durations 10

clean:  ## remove everything that make created, including .venv
	rm -rf $(VENV) .venv-* build dist *.egg-info .coverage* requirements*.lock.new sbom.json
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv: requirements-bootstrap.lock
	@[ -n "$(PYTHON)" ] || { \
		echo "The bridge needs Python 3.11 or newer. python3 on this machine is: $$(python3 --version 2>&1 || true)"; \
		echo "Install a newer Python, or name one: make setup PYTHON=/path/to/python3.13"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) does not run or is older than Python 3.11."; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot create virtual environments: its venv module is missing."; \
		echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; } >&2
	@echo "Installing the locked packages into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL_pip) $(LOCKED) requirements-bootstrap.lock
	@touch $@

$(INSTALLED): requirements-dev.lock pyproject.toml $(BIN)/uv
	$(if $(INSTALL_$(INSTALLER)),,$(error INSTALLER is uv or pip, not "$(INSTALLER)"))
	@{ $(INSTALL_$(INSTALLER)) $(LOCKED) requirements-dev.lock && \
	$(INSTALL_$(INSTALLER)) --no-deps --no-build-isolation -e .; } || { \
		[ $(INSTALLER) = pip ] || echo "If uv cannot install here, use pip: make setup INSTALLER=pip"; \
		exit 1; } >&2
	@touch $@
