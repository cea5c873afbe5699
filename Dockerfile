# regtune for a team: the MLflow server, `db init` and sweeps are one image, told apart by their command.
# `--build-arg EXTRA=ray` adds Ray: then it is also the image of a cluster's nodes (deploy/rayjob.yaml).
# Packages and regtune are layers of their own, so a change of the source copies 1 MB and installs nothing else.

FROM python:3.11-slim AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
COPY requirements.lock requirements-ray.lock /build/
ARG EXTRA=
# TensorFlow's C++ headers (290 MB) are for compiling, which nothing here does.
RUN /opt/venv/bin/pip install --require-hashes --only-binary :all: -r /build/requirements.lock \
        ${EXTRA:+-r /build/requirements-$EXTRA.lock} \
    && cd "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -r tensorflow/include \
    && echo /opt/regtune > regtune.pth

FROM packages AS regtune
COPY pyproject.toml README.md LICENSE /build/
COPY regtune /build/regtune
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation --target /opt/regtune /build

FROM python:3.11-slim
RUN groupadd --gid 10001 regtune \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin regtune \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/regtune /var/lib/regtune-data \
    && install -d -m 0755 /srv/regtune
COPY --from=packages /opt/venv /opt/venv
COPY --from=regtune /opt/regtune /opt/regtune
# HOME lies in /tmp: the root file system is mounted read-only, and /tmp is memory that ends with the container.
ENV PATH=/opt/regtune/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp \
    REGTUNE_HOME=/var/lib/regtune REGTUNE_DATA_DIR=/var/lib/regtune-data
WORKDIR /srv/regtune
USER 10001:10001
EXPOSE 5000
STOPSIGNAL SIGTERM
# /health is the one page that MLflow serves without credentials and under any host name.
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:5000/health', timeout=4)"]
ENTRYPOINT ["regtune"]
CMD ["ui", "--host", "0.0.0.0", "--port", "5000", "--no-browser"]
