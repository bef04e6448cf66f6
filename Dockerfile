# The bridge as an image: the locked versions without the tools of development, no root.
# Its base is a minor version, so that a build brings its security fixes: build anew each
# month. Where the same bytes are wanted each time, put the base's digest behind it.
# `docker compose up --build` runs it. (`docker run --env-file` reads .env in its own way:
# quotes and comments behind a value stay in it.)

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY bridge bridge
COPY twiml twiml
# Wheels only: installing one runs nothing of it.
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: -c requirements.lock '.[voice]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin bridge
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# An agent of your own: mount it here and set BRIDGE_AGENT=my_agent.py:name
WORKDIR /agents
COPY examples examples
USER 10001
EXPOSE 8080
# Calls are finished first: give `docker stop` at least BRIDGE_DRAIN_SECONDS.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + (os.environ.get('BRIDGE_PORT') or '8080') + '/healthz', timeout=2)"]
ENTRYPOINT ["bridge"]
CMD ["serve"]
