"""What is read from perf, py-spy and /proc."""

from __future__ import annotations

import os

import pytest

from bench import profilers, tally
from curve_storage.cli.playground.processes import Identity, identity


def test_perf_stat() -> None:
    text = (
        "# started on Sat Nov 28\n\n"
        "1200,,raw_syscalls:sys_enter,100,100.00,,\n"
        "700,,syscalls:sys_enter_writev,100,100.00,,\n"
        "<not supported>,,syscalls:sys_enter_fork,0,100.00,,\n"
    )
    assert profilers.parse_perf_stat(text) == {"all": 1200, "writev": 700}
    assert profilers.parse_perf_stat("perf: no such process\n") == {}


def test_perf_script() -> None:
    text = (
        "  17 ffffffff81 finish_task_switch.isra.0 ([kernel.kallsyms])\n"
        "  17   7f00aa11 _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)\n"
        "  17   7f00aa12 _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)\n"
        "  18   7f00aa12 [unknown] (/usr/bin/etcd)\n"
        "  99   7f00aa12 other (/usr/bin/other)\n"
        "not a sample\n"
    )
    found = profilers.parse_perf_script(text, {17: "volume", 18: "etcd"})
    assert found["volume"].most_common() == [
        ("_PyEval_EvalFrameDefault [libpython3.11.so.1.0]", 2),
        ("finish_task_switch.isra.0 [kernel]", 1),
    ]
    assert set(found) == {"volume", "etcd"}
    assert profilers.shares(found["volume"], 1) == [("_PyEval_EvalFrameDefault [libpython3.11.so.1.0]", 2 / 3)]
    assert profilers.shares(found["volume"].__class__(), 3) == []


def test_stacks() -> None:
    text = "run (a.py:1);send (b.py:2) 3\nrun (a.py:1) 1\nrun (a.py:1);run (a.py:1);send (b.py:2) 2\n\n"
    assert profilers.parse_stacks(text) == {"send (b.py:2)": 5, "run (a.py:1)": 1}


def test_stat_with_a_name_in_parentheses() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    fields = ["S", *["0"] * 10, str(3 * ticks), str(ticks), "0"]
    assert tally.parse_stat(f"12 (a) b) {' '.join(fields)}") == (3.0, 1.0)


def test_switches() -> None:
    assert tally.parse_switches("Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n") == (7, 2)


def test_busy_time_leaves_waiting_out() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    line = "cpu " + " ".join(str(n * ticks) for n in (5, 1, 4, 100, 50, 2, 3, 1, 0, 0))
    assert tally.machine_busy(line + "\ncpu0 1 1 1 1\n") == 16


def test_what_was_spent_is_by_name() -> None:
    a, b, new = Identity(1, 1), Identity(2, 1), Identity(3, 1)
    before = {a: tally.Tally(1, 1, 10, 1), b: tally.Tally(0, 0, 0, 0)}
    after = {a: tally.Tally(2, 1.5, 30, 1), b: tally.Tally(1, 0, 5, 2), new: tally.Tally(9, 9, 9, 9)}
    found = tally.spent(before, after, {a: "volume", b: "volume", new: "volume"})
    assert found == {"volume": tally.Tally(2, 0.5, 25, 2)}
    assert found["volume"].cpu == pytest.approx(2.5)


def test_this_process_is_counted() -> None:
    own = identity(os.getpid())
    assert own is not None
    read = tally.read({own: "own", Identity(own.pid, -1): "another of this pid"})
    assert set(read) == {own} and read[own].cpu > 0
    memory = tally.memory(own.pid)
    assert 0 < memory["private"] <= memory["rss"] and memory["pss"] <= memory["rss"]
