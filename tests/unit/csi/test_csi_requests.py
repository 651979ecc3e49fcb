"""Sizes, parameters, capabilities, locks, health: the pure part of the CSI driver."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curve_csi import capabilities, health, mounts, parameters, sizes, usage
from curve_csi.locks import OperationLocks
from curve_csi.proto import csi_pb2 as csi
from curve_storage import mountinfo
from curve_storage.errors import Aborted, Internal, InvalidArgument, OutOfRange
from curve_storage.proto import mds_pb2 as mds
from curve_storage.proto import volumehost_pb2 as host
from curve_storage.units import GiB

Mode = csi.VolumeCapability.AccessMode


def capability(mode: int, kind: str = "mount", fs: str = "") -> csi.VolumeCapability:
    made = csi.VolumeCapability(access_mode=Mode(mode=mode))  # type: ignore[arg-type]
    if kind == "mount":
        made.mount.fs_type = fs
    elif kind == "block":
        made.block.SetInParent()
    return made


@given(
    required=st.integers(min_value=0, max_value=100 * GiB),
    limit=st.integers(min_value=0, max_value=100 * GiB),
)
def test_chosen_size_is_inside_the_range(required: int, limit: int) -> None:
    try:
        size = sizes.choose(csi.CapacityRange(required_bytes=required, limit_bytes=limit))
    except OutOfRange:
        smallest = max(GiB, -(-required // GiB) * GiB)
        assert limit and smallest > limit
        return
    assert size % GiB == 0 and size >= max(GiB, required)
    assert not limit or size <= limit


def test_default_and_negative_size() -> None:
    assert sizes.choose(csi.CapacityRange()) == sizes.DEFAULT
    with pytest.raises(InvalidArgument):
        sizes.choose(csi.CapacityRange(required_bytes=-1))


def test_parameters() -> None:
    parsed = parameters.parse(
        {"poolset": "ssd", "csi.storage.k8s.io/fstype": "xfs", "onDelete": "purge", "csi.storage.k8s.io/pvc/name": "x"}
    )
    assert (parsed.poolset, parsed.filesystem, parsed.on_delete) == ("ssd", "xfs", "purge")
    assert parsed.context() == {"fsType": "xfs"}


@pytest.mark.parametrize("raw", [{"pool": "x"}, {"onDelete": "keep"}, {"fsType": "ntfs"}, {"accessibility": "moon"}])
def test_bad_parameters_name_the_key(raw: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parameters.parse(raw)
    assert next(iter(raw)) in str(caught.value)


@pytest.mark.parametrize(
    "mode", [Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_SINGLE_WRITER, Mode.SINGLE_NODE_READER_ONLY]
)
@pytest.mark.parametrize("kind", ["mount", "block"])
def test_served_capabilities(mode: int, kind: str) -> None:
    capabilities.check([capability(mode, kind)])


@pytest.mark.parametrize(
    "refused",
    [
        capability(Mode.MULTI_NODE_MULTI_WRITER),
        capability(Mode.MULTI_NODE_READER_ONLY),
        capability(Mode.UNKNOWN),
        capability(Mode.SINGLE_NODE_WRITER, "none"),
        capability(Mode.SINGLE_NODE_WRITER, fs="ntfs"),
    ],
)
def test_refused_capabilities(refused: csi.VolumeCapability) -> None:
    assert capabilities.problem(refused)
    with pytest.raises(InvalidArgument):
        capabilities.check([refused])


def test_no_capability_at_all() -> None:
    with pytest.raises(InvalidArgument):
        capabilities.check([])


def test_one_operation_per_volume() -> None:
    locks = OperationLocks()
    with locks.hold("v", "first"), pytest.raises(Aborted, match="first"), locks.hold("v", "second"):
        pass
    with locks.hold("v", "third"):
        pass


def test_health_in_both_forms() -> None:
    good = health.volume_condition(mds.StatusReply(health="healthy"))
    assert not good.abnormal and not health.volume_health("v", good).health_statuses
    bad = health.volume_condition(
        mds.StatusReply(health="unavailable", reasons=[mds.Reason(code="x", message="no quorum")])
    )
    assert bad.abnormal and "no quorum" in bad.message
    entry = health.volume_health("v", bad).health_statuses[0]
    assert entry.status == csi.INACCESSIBLE and entry.reason == "Inaccessible"
    fenced = health.attachment_condition(host.Attachment(health=host.HEALTH_FENCED))
    assert fenced.abnormal and fenced.kind == csi.INACCESSIBLE


MOUNTINFO = """22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 7:3 / /var/lib/kubelet/a\\040b rw,relatime shared:9 - ext4 /dev/loop3 rw
41 22 7:3 / /pods/x ro,relatime shared:9 - ext4 /dev/loop3 rw
42 22 0:5 /loop3 /pods/block rw - devtmpfs devtmpfs rw
"""


def test_mountinfo() -> None:
    table = mountinfo.parse(MOUNTINFO)
    staged = mountinfo.visible("/var/lib/kubelet/a b", table)
    assert staged is not None and staged.device == (7, 3) and not staged.read_only
    assert [str(mount.target) for mount in mounts.same_source(staged, table)] == ["/var/lib/kubelet/a b", "/pods/x"]
    published = mountinfo.visible("/pods/x/", table)
    assert published is not None and published.read_only
    assert mountinfo.visible("/nowhere", table) is None


def test_usage_of_a_real_file_system() -> None:
    one, two = usage.parse("4096 100 40 30 50 20", "/x")
    assert (one.total, one.available, one.used) == (409600, 122880, 245760)
    assert (two.total, two.available, two.used) == (50, 20, 30)
    with pytest.raises(Internal):
        usage.parse("stat: hello", "/x")
