"""What belongs to a box and what does not: names, control groups, loop devices, the state file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from curve_storage import mountinfo
from curve_storage.errors import ConfigError, DeadlineExceeded
from e2e.box import cgroups, loops, network, places, state, sweep
from e2e.box.loops import Loop, mounted_devices, ours
from e2e.box.places import Places
from e2e.box.state import State, StateFile, boot_id, sole_operation, start_time

MOUNTS = mountinfo.parse("""\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
40 21 0:545 / /mnt rw shared:1 - fuse curve rw
""")
DISK, FUSE, OTHER = os.makedev(254, 0), os.makedev(0, 545), os.makedev(0, 77)
VOLUME = "/var/lib/curve/volumehost/volumes/1/mount/volume"


def test_hierarchies_of_control_groups() -> None:
    found = dict(cgroups.hierarchies(MOUNTS))
    assert {"cpu", "cpuacct"} <= found[Path("/sys/fs/cgroup/cpu")]
    assert "systemd" in found[Path("/sys/fs/cgroup/systemd")]
    assert found[Path("/sys/fs/cgroup/unified")] == set()
    assert len(found) == 3


def test_devices_of_mounts_are_numbered_as_the_kernel_does() -> None:
    assert mounted_devices([MOUNTS]) >= {DISK, FUSE, os.makedev(0, 29)}
    status = os.stat("/")
    own = mounted_devices([mountinfo.mounts()])
    assert status.st_dev in own


def test_a_file_of_the_box_makes_a_loop_device_ours() -> None:
    mine, others = Loop(0, DISK, 5, 0, "/x"), Loop(1, DISK, 6, 0, VOLUME)
    assert ours([mine, others], {(DISK, 5)}, {DISK}, set()) == [mine]


def test_a_file_system_that_died_with_the_node_makes_it_ours() -> None:
    loop = Loop(3, FUSE, 2, 0, "/somewhere/volume")
    assert ours([loop], set(), {DISK}, {DISK, FUSE}) == [loop]
    assert ours([loop], set(), {DISK, FUSE}, {DISK, FUSE}) == []


def test_without_knowledge_of_the_dead_the_name_and_the_absence_of_a_mount_decide() -> None:
    orphan, stranger = Loop(1, FUSE, 2, 0, VOLUME), Loop(2, OTHER, 2, 0, "/tmp/playground/volume")
    assert ours([orphan, stranger], set(), {DISK}, set()) == [orphan]
    assert ours([orphan, stranger], set(), {DISK, FUSE}, set()) == [], "a living node has it mounted"


def test_a_loop_device_over_ours_goes_first() -> None:
    lower, upper = Loop(4, FUSE, 2, 0, VOLUME), Loop(9, OTHER, 7, os.makedev(7, 4), "/var/lib/kubelet/dev/x")
    assert ours([lower, upper], set(), {DISK, OTHER}, set()) == [upper, lower]


def test_files_are_found_by_inode(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    file = tmp_path / "a/b/disk"
    file.touch()
    status = file.stat()
    assert loops.files_below(tmp_path, {status.st_ino}) == {(status.st_dev, status.st_ino)}
    assert loops.files_below(tmp_path, set()) == set()


def test_namespaces_of_another_box_are_not_ours() -> None:
    assert network.is_ours(network.NAME)
    assert network.is_ours(f"{network.NAME}-3")
    assert not network.is_ours(f"{network.NAME}-dev")
    assert not network.is_ours(f"{network.NAME}-dev-3")
    assert not network.is_ours(f"{network.NAME}x")


def test_names_of_boxes() -> None:
    assert places.box_name("curve-box-dev") == "curve-box-dev"
    for wrong in ("box", "curve-box-1", "curve-box-../x", ""):
        with pytest.raises(ConfigError, match="CURVE_BOX_NAME"):
            places.box_name(wrong)


def test_the_state_survives_as_it_was_written(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "run/state.json")
    assert file.load() is None
    written = State(cache="/c", boot=boot_id(), supervisor=(1, 2), sysctls={"a/b": ["1", "2"]})
    file.save(written)
    assert file.load() == written
    assert file.update(phase="up").phase == "up"
    file.remove()
    assert file.load() is None


def test_a_stranger_with_the_supervisors_number_is_not_the_supervisor() -> None:
    me, started = os.getpid(), start_time(os.getpid())
    assert started is not None
    assert State("/c", boot_id(), supervisor=(me, started)).supervisor_pid() == me
    assert State("/c", boot_id(), supervisor=(me, started - 1)).supervisor_pid() is None
    assert State("/c", "another boot", supervisor=(me, started)).supervisor_pid() is None
    assert State("/c", boot_id()).supervisor_pid() is None


def test_one_operation_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "NAME", f"curve-box-unit-{os.getpid()}")
    with sole_operation(), pytest.raises(DeadlineExceeded, match="another command"), sole_operation(patience=0.0):
        pass
    reached = threading.Event()

    def second() -> None:
        with sole_operation():
            reached.set()

    with sole_operation():
        thread = threading.Thread(target=second)
        thread.start()
        assert not reached.wait(0.3)
    thread.join(30)
    assert reached.is_set()


def test_sysctls_go_back_unless_somebody_else_changed_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SYSCTLS", tmp_path)
    (tmp_path / "mine").write_text("1024\n")
    (tmp_path / "theirs").write_text("4096\n")
    sweep.restore_sysctls({"mine": ["128", "1024"], "theirs": ["128", "1024"]})
    assert (tmp_path / "mine").read_text() == "128"
    assert (tmp_path / "theirs").read_text() == "4096\n"


def test_logs_stay_when_the_data_goes(tmp_path: Path) -> None:
    where = Places(tmp_path).box
    (where / "logs").mkdir(parents=True)
    (where / "curve-box-1/upper").mkdir(parents=True)
    (where / "kubeconfig").touch()
    sweep.remove_data(where)
    assert [entry.name for entry in where.iterdir()] == ["logs"]
