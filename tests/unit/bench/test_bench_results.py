"""Goals, ratios, tables, history and comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import block, block_jobs, compare, footprint, goals, history
from bench.block_jobs import JOBS
from bench.peers import ceph, gluster, report


def text(table: Any) -> str:
    console = Console(width=220, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(table)
    return capture.get()


RESULTS: dict[str, dict[str, Any]] = {
    "write_4k_qd32": {
        "raw": 40_000.0, "raw_sync": 10_000.0, "fuse": 16_000.0, "nbd": 20_000.0, "ceph": 2_500.0,
        "cpu_us_nbd": {"volume": 20.0, "chunkserver1": 12.0, "chunkserver2": 9.0},
    },
    "read_4k_qd32": {"raw": 100_000.0, "nbd": 39_999.0},
}  # fmt: skip
SHOWN = [job for job in JOBS if job.key in RESULTS]


@pytest.mark.parametrize(("value", "word"), [(1999, "missed"), (2000, "met"), (3000, "aim")])
def test_goals_where_more_is_better(value: float, word: str) -> None:
    assert goals.word(goals.GOALS["write_4k_qd1"], value) == word


@pytest.mark.parametrize(("value", "word"), [(3.01, "missed"), (3.0, "met"), (1.0, "aim")])
def test_goals_where_less_is_better(value: float, word: str) -> None:
    assert goals.word_at_most(footprint.IDLE_CPU, value) == word


def test_a_goal_without_a_figure_has_no_word() -> None:
    assert goals.word(None, 5) == "" and goals.word(goals.FUSE_OF_NBD, None) == ""
    assert (goals.short(2000), goals.short(1500), goals.short(500)) == ("2k", "1.5k", "500")


def test_every_goal_is_of_a_job() -> None:
    assert set(goals.GOALS) <= {job.key for job in JOBS}


def test_ratios_of_durable_writes_are_to_the_durable_disk() -> None:
    assert history.ratios(RESULTS["write_4k_qd32"]) == {"nbd/raw": 2.0, "fuse/raw": 1.6, "fuse/nbd": 0.8}
    assert history.ratios(RESULTS["read_4k_qd32"]) == {"nbd/raw": 0.4}
    assert history.ratios({"nbd": 5.0}) == {}


def test_the_table_says_what_is_reached() -> None:
    lines = text(block.table(RESULTS, SHOWN)).splitlines()
    write = next(line for line in lines if line.startswith("write_4k_qd32"))
    read = next(line for line in lines if line.startswith("read_4k_qd32"))
    assert "200 %" in write and "80 %" in write and write.count("met") == 2 and "21" in write.split()
    assert "missed" in read and "40 %" in read


def test_the_table_of_peers_has_multiples() -> None:
    shown = text(report.table(RESULTS, SHOWN, ["curve", "ceph", "gluster"]))
    write = next(line for line in shown.splitlines() if line.startswith("write_4k_qd32"))
    assert "8.0 ×" in write and "2,500" in write
    assert report.against(RESULTS["read_4k_qd32"], "ceph") is None
    assert all(system in report.MEANING for system in report.SYSTEMS)
    assert "ceph (ceph version 16)" in report.durability(["ceph"], {"ceph": "ceph version 16"})


def test_peers_keep_to_their_directory(tmp_path: Path) -> None:
    text = ceph.configuration(tmp_path, "11111111-2222", disk=4096)
    assert f"osd data = {tmp_path}/osd$id" in text and "bluestore block size = 4096" in text
    paths = [line.split(" = ")[1] for line in text.splitlines() if " = /" in line]
    assert paths and all(path.startswith(str(tmp_path)) for path in paths)
    text = gluster.configuration(tmp_path)
    assert f"option working-directory {tmp_path}/work" in text and text.endswith("end-volume\n")


def test_targets_of_fio() -> None:
    assert block_jobs.target_arguments("rbd", "pool/image")[-2:] == ["--pool=pool", "--rbdname=image"]
    assert block_jobs.target_arguments("file", "/x") == ["--ioengine=libaio", "--direct=1", "--filename=/x"]


def test_history(tmp_path: Path) -> None:
    line = history.entry({"cores": 2}, {"commit": "abc", "changed": False}, RESULTS, moment=0.0)
    assert line["time"] == "1970-01-01T00:00:00Z"
    assert line["disk"] == {
        "write_4k_qd32 raw": 40_000.0, "write_4k_qd32 raw_sync": 10_000.0, "read_4k_qd32 raw": 100_000.0,
    }  # fmt: skip
    assert line["ratios"]["write_4k_qd32"] == {"nbd/raw": 2.0, "fuse/raw": 1.6, "fuse/nbd": 0.8}
    assert line["values"]["read_4k_qd32"] == {"nbd": 39_999.0}
    file = tmp_path / "x" / "history.jsonl"
    history.append(file, line)
    history.append(file, {**line, "commit": "def"})
    assert [one["commit"] for one in history.read(file)] == ["abc", "def"]
    with file.open("a") as out:
        out.write("{\n")
    with pytest.raises(ValueError, match=r"history\.jsonl:3: not JSON"):
        history.read(file)
    file.write_text(json.dumps({"version": 99}) + "\n")
    with pytest.raises(ValueError, match="version"):
        history.read(file)


def test_the_recorded_history_can_be_read() -> None:
    for line in history.read(history.HISTORY):
        assert line["commit"] and line["machine"]["cores"] and line["values"]


def test_facts_of_this_machine() -> None:
    found = history.facts()
    assert found["cores"] > 0 and found["memory"] > 0 and found["kernel"]
    assert history.cpu_model("processor\t: 0\nmodel name\t: A CPU: fast\n") == "A CPU: fast"
    assert history.cpu_model("") == ""


def test_comparison_takes_ratios_within_rounds() -> None:
    rounds: list[compare.Round] = [
        ({"j": {"nbd": 100.0}}, {"j": {"nbd": 110.0}}),
        ({"j": {"nbd": 50.0}}, {"j": {"nbd": 60.0}}),  # a slow moment of the machine
        ({"j": {"nbd": 100.0}}, {"j": {"nbd": 100.0}}),
        ({}, {"j": {"nbd": 900.0}}),  # no pair
    ]
    (found,) = compare.compare(rounds, ["j", "other"], ["nbd", "fuse"])
    assert found.ratios == pytest.approx((1.1, 1.2, 1.0)) and found.median == pytest.approx(1.1)
    assert (found.a, found.b) == (100.0, 100.0)
    assert "1.100" in text(compare.table([found], ("A 1", "B 2")))


def test_a_checkout_comes_before_what_is_installed(tmp_path: Path) -> None:
    package = tmp_path / "storage_daemon" / "curve_storage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    compare.verify(tmp_path)
    (package / "__init__.py").unlink()
    package.rmdir()
    with pytest.raises(RuntimeError, match="not what would be measured"):
        compare.verify(tmp_path)


def test_highest_memory() -> None:
    a = {"chunkserver1": {"rss": 5, "pss": 4}}
    b = {"chunkserver1": {"rss": 4, "pss": 6}, "chunkserver2": {"rss": 1}}
    assert footprint.highest(a, b) == {"chunkserver1": {"rss": 5, "pss": 6}, "chunkserver2": {"rss": 1}}
    assert a == {"chunkserver1": {"rss": 5, "pss": 4}}


@pytest.mark.parametrize(
    ("parse", "arguments"),
    [
        (block.parse_arguments, ["--jobs", "nonsense"]),
        (block.parse_arguments, ["--targets", "tape"]),
        (compare.parse_arguments, ["a"]),
        (compare.parse_arguments, ["a", "b", "--jobs", ""]),
        (footprint.parse_arguments, ["--parts", "soul"]),
    ],
)
def test_bad_arguments_are_refused(parse: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err
