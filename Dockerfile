# The bridge as an image: the locked versions, no development packages, no pip, no root.
# It needs BuildKit (the default of docker 23 and newer, and of docker compose), because
# the wheels are kept in a build cache. docs/image.md says how to renew the base image,
# how to add an agent with its own packages, and how to list what the image contains.
# (`docker run --env-file` reads .env in another way: quotes, and comments after a value,
# become part of the value.)

# The tag says which base image this is; the digest decides which bytes are used, on
# amd64 and arm64. `make digests` renews it. PYTHON_IMAGE in the environment of
# `docker compose build` replaces it, for example by the same image in another registry.
ARG PYTHON_IMAGE=python:3.13-slim@sha256:70729b46c69b4f1e97c4822c1af3df53a1476cf5ddc6c087c0c10bc3a5678c2f

# --- The dependencies: this stage changes only with the locks.
FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_CACHE_DIR=/var/cache/pip UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy
WORKDIR /source
# The installers get an environment of their own, so that /venv, which the image runs,
# contains no installer.
RUN python -m venv /tools && python -m venv --without-pip /venv
COPY requirements-bootstrap.lock requirements.lock ./
# Wheels only: installing a wheel runs no code of its package. The cache has its own
# id, because uv trusts its cache. constraints.txt is for images that are built on this one.
RUN --mount=type=cache,id=twilio-realtime-bridge,target=/var/cache \
    /tools/bin/pip install --disable-pip-version-check --only-binary :all: \
        --require-hashes -r requirements-bootstrap.lock \
 && /tools/bin/uv pip install --python /venv/bin/python --only-binary :all: \
        --require-hashes -r requirements.lock \
 && /tools/bin/uv pip freeze --python /venv/bin/python > constraints.txt

# --- The bridge itself, and the bytecode of the modules that it uses.
FROM dependencies AS build
COPY pyproject.toml README.md LICENSE ./
COPY licenses licenses
COPY scripts/compile_used.py scripts/
COPY bridge bridge
COPY twiml twiml
# /new gets the files that this step adds to /venv. They become a layer of their own, so
# that a new version of the bridge does not transfer its dependencies again.
RUN touch /before \
 && /tools/bin/uv build --quiet --wheel --no-build-isolation --python /tools/bin/python . \
 && /tools/bin/uv pip install --no-cache --python /venv/bin/python --no-deps dist/*.whl \
 && cd / && /venv/bin/python -B /source/scripts/compile_used.py bridge twiml \
 && mkdir /new && find venv -type f -cnewer /before -print0 \
  | tar --create --null --files-from=- | tar --extract --directory=/new
# A label must not contradict the package.
ARG IMAGE_VERSION=unknown
RUN [ "$IMAGE_VERSION" = unknown ] || [ "$IMAGE_VERSION" = "$(/venv/bin/python -c \
    'from importlib.metadata import version; print(version("twilio-realtime-bridge"))')" ]

# --- `make sbom` only: what /venv contains, as CycloneDX, validated against its schema.
FROM build AS sbom
COPY requirements-dev.lock ./
RUN --mount=type=cache,id=twilio-realtime-bridge,target=/var/cache \
    python -m venv --without-pip /dev-tools \
 && /tools/bin/uv pip install --python /dev-tools/bin/python --only-binary :all: \
        --require-hashes -r requirements-dev.lock \
 && /dev-tools/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
        --spec-version 1.6 --output-reproducible --validate --output-file /sbom.json \
        /venv/bin/python
FROM scratch AS sbom-file
COPY --from=sbom /sbom.json /

# --- The image.
FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin bridge
COPY --from=dependencies /venv /venv
COPY --from=build /new/venv /venv
# For images that are built on this one: the versions that must not change.
COPY --from=dependencies /source/constraints.txt /usr/share/bridge/
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# To run your own agent, mount it here and set BRIDGE_AGENT=my_agent.py:name
WORKDIR /agents
COPY examples examples
USER 10001
EXPOSE 8080
# The bridge lets its calls end first: give `docker stop` at least BRIDGE_DRAIN_SECONDS.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + (os.environ.get('BRIDGE_PORT') or '8080') + '/healthz', timeout=2)"]
# `make image` sets the version (of pyproject.toml) and the revision (of git).
ARG PYTHON_IMAGE
ARG IMAGE_VERSION=unknown
ARG IMAGE_REVISION=unknown
LABEL org.opencontainers.image.title="twilio-realtime-bridge" \
      org.opencontainers.image.description="A Twilio phone number in front of an OpenAI Realtime agent: a Media Streams bridge that knows what the caller heard." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${IMAGE_VERSION}" \
      org.opencontainers.image.revision="${IMAGE_REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
ENTRYPOINT ["bridge"]
CMD ["serve"]
