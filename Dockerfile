# One image for workers, the producer and Flower. It holds no secret, and nothing in it is written while it runs.
#
#   docker build --tag label-dataset-migrator .
#   docker build --build-arg PYTHON_IMAGE=mirror.lab.example/python:3.11-slim --tag label-dataset-migrator .

ARG PYTHON_IMAGE=python:3.11-slim

# The wheel and an environment around it. What this stage needs beside that stays in it.
FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Wheels only: whatever would have to be compiled is an error, not a wait. Of bagit, which is Python alone, only the source is
# published: it is built by what is locked. The exception counts after the rule, which variables have no order for.
COPY requirements-build.txt requirements-runtime.txt ./
RUN pip install --only-binary :all: --require-hashes --requirement requirements-build.txt
# The libraries' own tests are a quarter of their size, and no library imports them.
RUN python -m venv --without-pip /opt/migrator \
 && pip wheel --only-binary :all: --no-binary bagit --no-deps --no-build-isolation --require-hashes \
      --requirement requirements-runtime.txt --wheel-dir wheels \
 && pip --python /opt/migrator/bin/python install --no-deps --no-index wheels/*.whl \
 && find /opt/migrator/lib -type d -name tests -prune -exec rm -r {} +
COPY pyproject.toml README.md LICENSE ./
COPY sql sql
COPY worker worker
COPY producer producer
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && pip --python /opt/migrator/bin/python install --no-deps --no-index dist/*.whl \
 && pip --python /opt/migrator/bin/python check

FROM ${PYTHON_IMAGE}
# Numbers that never change: files in the store belong to them.
RUN groupadd --gid 10001 migrator \
 && useradd --uid 10001 --gid migrator --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin migrator \
 && install --directory --owner migrator --group migrator --mode 0700 /var/lib/flower
COPY --from=build /opt/migrator /opt/migrator
# Names of files are bytes that are read as UTF-8, whatever the locale; compiled modules are in the image already.
ENV PATH=/opt/migrator/bin:$PATH PYTHONUTF8=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ALIVE_FILE=/tmp/worker-alive
WORKDIR /opt/migrator
USER 10001:10001
# A worker touches the file with each of its heartbeats, every two seconds, while it is connected to the broker. So only this
# worker can answer, no other is asked, and no interpreter is started. A service that runs something else sets another check.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=2 \
  CMD test -n "$(find "$ALIVE_FILE" -newermt '-30 seconds')"
CMD ["celery", "-A", "worker.app", "worker", "--concurrency", "2", "--task-events"]
