"""Fixtures for all tests. `etcd` is one real etcd member for the whole session: use your own key prefix in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from etcd_cluster import EtcdCluster, EtcdMissing


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    try:
        cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    except EtcdMissing as error:
        pytest.fail(str(error), pytrace=False)
    with cluster:
        yield cluster
