# The commands of the house. Needs make and a Python from 3.11 up; `make` lists them.

VENV := .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

# The first that runs and is new enough. On a machine with version shims a name may be
# found and still not run, so each is tried.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)

# The oldest and the newest Python the lock is resolved for.
LOCK_PYTHONS ?= python3.11 python3.13

.DEFAULT_GOAL := help
.PHONY: help setup demo test compose-test serve fleet deploy check audit lock image sbom digests clean fuzz

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(INSTALLED)  ## make .venv with everything in it (the others do it when needed)

demo: setup  ## place a call offline: fake Twilio, fake model, the real bridge
	@$(BIN)/bridge demo

# Bytecode is written whatever the environment says: without it each worker compiles all.
test: setup  ## run the tests
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 8 --dist worksteal

compose-test: setup  ## run the tests that need a Docker engine
	@$(BIN)/python -m pytest -m compose tests/compose --durations 15

# Without a public url and a token nobody but developers call: unsigned requests are
# served then, on this machine alone, as the server itself says when it starts. An empty
# value is an unset one.
serve: setup  ## run the bridge with the settings of the environment and .env
	@said() { [ -n "$$(eval echo "\$${$$1:+said}")" ] || grep -Eqs \
		"^[[:space:]]*(export[[:space:]]+)?$$1[[:space:]]*=[[:space:]]*[\"']?[^[:space:]\"'#]" .env; }; \
	said BRIDGE_PUBLIC_URL || said TWILIO_AUTH_TOKEN || said BRIDGE_INSECURE || export BRIDGE_INSECURE=1; \
	exec $(BIN)/bridge serve

fleet: setup  ## the bridge scaled, on this machine: HAProxy, Redis, three bridges
	@exec $(BIN)/python scripts/fleet.py --bridges 3

deploy:  ## replace the bridges of docker compose without losing a call
	@python3 scripts/deploy.py $(OPTIONS)

check: setup  ## lint and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

audit: setup  ## are the installed packages the locked ones, and is nothing known against them?
	@$(BIN)/python -m scripts.audit

# In an environment of its own: atheris has wheels for few Pythons.
FUZZ := .venv-fuzz
SECONDS ?= 60
fuzz: $(FUZZ)/.installed  ## look for inputs that break something (13 targets, SECONDS=60 each)
	@$(FUZZ)/bin/python -m tests.fuzz --seconds $(SECONDS)

$(FUZZ)/.installed: requirements.lock pyproject.toml | setup
	$(BIN)/python -m venv $(FUZZ)
	@$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check \
		--only-binary :all: -r requirements.lock -e ".[fuzz]" || { \
		echo "atheris cannot be installed for this Python; it has wheels for few."; \
		echo "Try another: rm -rf $(VENV) && make fuzz PYTHON=python3.11"; exit 1; } >&2
	@touch $@

lock: setup  ## resolve pyproject.toml anew into requirements.lock
	@$(BIN)/python scripts/lock.py $(LOCK_PYTHONS) > requirements.lock.new \
		|| { rm -f requirements.lock.new; exit 1; }
	@mv requirements.lock.new requirements.lock

# PYTHON_IMAGE of the environment, if it is set, replaces the base of the Dockerfile.
IMAGE ?= twilio-realtime-bridge
BUILD = DOCKER_BUILDKIT=1 docker build $${PYTHON_IMAGE:+--build-arg PYTHON_IMAGE}
image:  ## build the image, with its version and revision in its labels
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); \
	revision=$$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown); \
	$(BUILD) --build-arg IMAGE_VERSION="$$version" --build-arg IMAGE_REVISION="$$revision" \
		--tag $(IMAGE) .

sbom:  ## write sbom.json: the Python packages of the image, as CycloneDX (needs docker)
	@$(BUILD) --target sbom-file --output . .

# With DIGESTS='Dockerfile ...' only in these files.
DIGESTS ?= Dockerfile docker-compose.yml $(wildcard deploy/kubernetes/*.yaml)
digests: setup  ## renew the digests of the images (asks their registry)
	@$(BIN)/python -m scripts.digests $(DIGESTS)

clean:  ## remove what was made, .venv included
	rm -rf $(VENV) .venv-* build *.egg-info .coverage* requirements.lock.new sbom.json
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { \
		echo "The bridge needs Python 3.11 or newer; python3 here is: $$(python3 --version 2>&1 || true)"; \
		echo "Install one, or name it: make setup PYTHON=/path/to/python3.13"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) does not run or is older than Python 3.11."; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: its venv module is missing."; \
		echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
		-r requirements.lock  # wheels only: installing one runs nothing of it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
