# The image of all three workers and of every command: `docker build -t delta-sink .`
# For both architectures: `docker buildx build --platform linux/amd64,linux/arm64 -t delta-sink .`

ARG PYTHON=3.13.5-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
COPY constraints.txt pyproject.toml hatch_build.py README.md LICENSE ./
COPY delta_sink ./delta_sink
# Also of what builds the package, which pip installs apart.
ENV PIP_CONSTRAINT=/build/constraints.txt
RUN python -m venv /opt/delta-sink
RUN /opt/delta-sink/bin/pip install --no-cache-dir --disable-pip-version-check '.[dynamodb,otlp]'
RUN /opt/delta-sink/bin/pip uninstall --yes --quiet pip

FROM python:${PYTHON}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="delta-sink" \
      org.opencontainers.image.description="Kafka topics into Delta Lake tables, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /opt/delta-sink /opt/delta-sink
ENV PATH=/opt/delta-sink/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Nothing of the image is written: the root may be read-only. Only a SQLite file of locks, if there
# is one, goes to the folder of work.
WORKDIR /var/lib/delta-sink
RUN chown 10001:10001 /var/lib/delta-sink
USER 10001:10001
EXPOSE 8080
# For the group http on its usual port; Kubernetes has probes of its own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["delta-sink"]
