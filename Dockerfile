# One image for every role of the product: `docker build .`
# The secrets are optional: package sources, pip configuration and CA certificates of a build machine without direct access
# to the public ones. They are mounted while a step runs and are never part of a layer.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS runtime
ENV PATH=/opt/curve/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1
# What the volume host, the chunk server and the CSI node plugin run: mkfs, fsck, blkid, losetup, mount, fusermount3.
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/build.sources \
    apt-get update \
    && apt-get install -y --no-install-recommends e2fsprogs fuse3 mount util-linux xfsprogs \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --no-create-home --home-dir / --shell /usr/sbin/nologin curve

# What tests run in pods: a load generator that verifies, Python, the usual commands.
FROM runtime AS workload
RUN --mount=type=secret,id=apt,target=/etc/apt/sources.list.d/build.sources \
    apt-get update \
    && apt-get install -y --no-install-recommends fio iproute2 procps \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
CMD ["sleep", "infinity"]

# The locked dependencies in an environment of their own; /build holds pip and the build backend and stays behind.
FROM runtime AS dependencies
COPY requirements.lock requirements.runtime.lock /build/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/build-ca.crt \
    python3 -m venv /build/venv \
    && python3 -m venv --without-pip /opt/curve \
    && sed -n '/^setuptools==/,/[^\\]$/p' /build/requirements.lock > /build/backend.lock \
    && /build/venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r /build/backend.lock \
    && /build/venv/bin/pip --python /opt/curve/bin/python install --no-cache-dir --require-hashes --no-deps \
       -r /build/requirements.runtime.lock

FROM dependencies AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY storage_daemon storage_daemon
COPY operator operator
COPY csi csi
RUN /build/venv/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheels .

FROM runtime AS curve
COPY --from=dependencies /opt/curve /opt/curve
# The only layer that a change of the product's code renews.
RUN --mount=type=bind,from=wheel,source=/build/venv,target=/build/venv \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /build/venv/bin/pip --python /opt/curve/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl
CMD ["curve", "--help"]
