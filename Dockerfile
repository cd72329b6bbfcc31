# Two stages: the first has what building needs, the second only what runs. Everything installed is locked by hash.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements.lock deploy/requirements-build.lock ./
RUN python -m venv /opt/archiver \
    && /opt/archiver/bin/pip install --require-hashes --no-deps -r requirements.lock \
    && pip install --require-hashes --no-deps -r requirements-build.lock
COPY . .
# Built without isolation: pip would fetch an unlocked setuptools.
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/archiver/bin/pip install --no-deps --no-index /dist/*.whl

FROM python:3.11-slim-bookworm
# Debian's slim image has the shell, tar, gzip and sha256sum that an operator needs beside the LTS.
RUN groupadd --gid 10001 archiver \
    && useradd --uid 10001 --gid archiver --no-create-home --home-dir /nonexistent archiver \
    && install -d -o archiver -g archiver /lts
COPY --from=build /opt/archiver /opt/archiver
COPY deploy/healthcheck.py /opt/archiver/healthcheck.py
ENV PATH=/opt/archiver/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 CMD ["python", "/opt/archiver/healthcheck.py"]
CMD ["python", "-m", "worker", "--queues", "all"]
