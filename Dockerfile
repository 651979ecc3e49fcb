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

# The locked dependencies in an environment of their own. pip is there only while it is needed.
FROM runtime AS environment
COPY requirements.runtime.lock /opt/curve/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/build-ca.crt \
    python3 -m venv /tmp/pip \
    && python3 -m venv --without-pip /opt/curve \
    && /tmp/pip/bin/pip --python /opt/curve/bin/python install --no-cache-dir --require-hashes --no-deps \
       -r /opt/curve/requirements.runtime.lock \
    && rm -rf /tmp/pip

# The product alone, in an environment at the same place.
FROM runtime AS product
COPY requirements.lock /build/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/build-ca.crt \
    python3 -m venv /build/pip \
    && python3 -m venv --without-pip /opt/curve \
    && sed -n '/^setuptools==/,/[^\\]$/p' /build/requirements.lock > /build/backend.lock \
    && /build/pip/bin/pip install --no-cache-dir --require-hashes --no-deps -r /build/backend.lock
WORKDIR /build/source
COPY pyproject.toml README.md ./
COPY storage_daemon storage_daemon
COPY operator operator
COPY csi csi
RUN /build/pip/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /build/wheels . \
    && /build/pip/bin/pip --python /opt/curve/bin/python install --no-deps --no-index /build/wheels/*.whl

FROM environment AS curve
# The one layer that a change of the product's code renews.
COPY --from=product /opt/curve /opt/curve
CMD ["curve", "--help"]
