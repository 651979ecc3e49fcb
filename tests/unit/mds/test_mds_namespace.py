"""Volumes and directories: rules, idempotency, recycle bin, space."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from curve_storage.errors import (
    AlreadyExists,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NoSpace,
    NotFound,
    NotLeader,
    Unavailable,
)
from curve_storage.mds.records import DELETING
from curve_storage.units import GiB

Cluster = Any  # conftest.MiniCluster


async def test_create_is_idempotent_and_compares(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    first = await namespace.create_volume("/a", GiB, owner="ann")
    assert await namespace.create_volume("/a", GiB, owner="ann") == first
    with pytest.raises(AlreadyExists, match=f"size {GiB}, not {2 * GiB}"):
        await namespace.create_volume("/a", 2 * GiB, owner="ann")
    with pytest.raises(AlreadyExists, match="owner ann, not bob"):
        await namespace.create_volume("/a", GiB, owner="bob")


async def test_concurrent_creates_of_one_path_make_one_volume(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    made = await asyncio.gather(*(namespace.create_volume("/d/x", GiB, create_parents=True) for _ in range(20)))
    assert len({entry.id for entry in made}) == 1
    assert len(namespace.list_directory("/", recursive=True, limit=0, start_after="")[0]) == 2


@pytest.mark.parametrize(
    ("size", "words"),
    [(GiB // 2, "below the minimum"), (GiB + 4096, "not a multiple"), (1 << 60, "above the maximum")],
)
async def test_sizes(pooled: Cluster, size: int, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        await pooled.term.namespace.create_volume("/a", size)
    assert caught.value.todo


@pytest.mark.parametrize("path", ["", "a", "/a//b", "/a/../b", "/", "/RecycleBin/x", "/" + "x" * 256, "/a\x00b"])
async def test_bad_paths(pooled: Cluster, path: str) -> None:
    with pytest.raises(InvalidArgument):
        await pooled.term.namespace.create_volume(path, GiB)


async def test_missing_parents(pooled: Cluster) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        await pooled.term.namespace.create_volume("/no/where", GiB)
    await pooled.term.namespace.create_volume("/some/where", GiB, create_parents=True)
    with pytest.raises(InvalidArgument, match="volume, not a directory"):
        await pooled.term.namespace.create_volume("/some/where/else", GiB)


async def test_no_pool_says_what_to_do(cluster: Cluster) -> None:
    with pytest.raises(FailedPrecondition, match="curve pool create"):
        await cluster.term.namespace.create_volume("/a", GiB)


async def test_space_is_promised_once(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    results = await asyncio.gather(
        *(namespace.create_volume(f"/v{i}", 30 * GiB) for i in range(5)), return_exceptions=True
    )
    made = [r for r in results if not isinstance(r, BaseException)]
    refused = [r for r in results if isinstance(r, NoSpace)]
    assert (len(made), len(refused)) == (3, 2)
    assert "30 GiB more do not fit" in str(refused[0]) and "10 GiB are left" in str(refused[0])
    with pytest.raises(NoSpace):
        await namespace.extend("/v0", 0, 41 * GiB)
    assert (await namespace.extend("/v0", 0, 40 * GiB)).size == 40 * GiB
    assert (await namespace.extend("/v0", 0, 10 * GiB)).size == 40 * GiB  # smaller: success without change


async def test_recycle_bin_round_trip(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    made = await namespace.create_volume("/d/a", GiB, create_parents=True)
    await namespace.delete("/d/a", 0, force=False)
    await namespace.delete("/d/a", 0, force=False)  # repeated
    with pytest.raises(NotFound, match="curve volume recover /d/a"):
        namespace.find_volume("", made.id)
    again = await namespace.create_volume("/d/a", GiB)
    assert again.id != made.id
    with pytest.raises(AlreadyExists):
        await namespace.recover("/d/a", 0, target_path="")
    back = await namespace.recover("", made.id, target_path="/d/old")
    assert (back.id, pooled.term.core.tables.path(back)) == (made.id, "/d/old")
    assert (await namespace.recover("", made.id, target_path="/d/old")).id == made.id  # repeated
    with pytest.raises(NotFound):
        await namespace.recover("/never", 0, target_path="")


async def test_recover_takes_the_latest(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    ids = []
    for _ in range(3):
        ids.append((await namespace.create_volume("/a", GiB)).id)
        await namespace.delete("/a", 0, force=False)
        pooled.clock.advance(5)
    assert (await namespace.recover("/a", 0, target_path="")).id == ids[-1]


async def test_retention(pooled: Cluster) -> None:
    term = pooled.term
    made = await term.namespace.create_volume("/a", GiB)
    await term.namespace.delete("/a", 0, force=False)
    await term.cleaner.round()
    assert made.id in term.core.tables.entries
    pooled.clock.advance(pooled.config.recycle_retention + 1)
    await term.cleaner.round()
    assert made.id not in term.core.tables.entries
    assert made.id in term.cleaner.removed


async def test_force_deletes_from_the_bin(pooled: Cluster) -> None:
    term = pooled.term
    made = await term.namespace.create_volume("/a", GiB)
    await term.namespace.delete("/a", 0, force=False)
    await term.namespace.delete("", made.id, force=True)
    assert term.core.tables.entries[made.id].status == DELETING
    with pytest.raises(FailedPrecondition, match="removed for good"):
        await term.namespace.recover("", made.id, target_path="")


async def test_rename(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    made = await namespace.create_volume("/d/a", GiB, create_parents=True)
    await namespace.create_volume("/b", GiB)
    with pytest.raises(AlreadyExists):
        await namespace.rename("/d/a", 0, "/b")
    assert (await namespace.rename("/d/a", 0, "/c")).id == made.id
    assert (await namespace.rename("/d/a", 0, "/c")).id == made.id  # repeated
    with pytest.raises(NotFound):
        await namespace.rename("/nothing", 0, "/c")
    await namespace.create_directory("/d/e")
    with pytest.raises(InvalidArgument, match="into itself"):
        await namespace.rename("/d", 0, "/d/e/f")
    await namespace.rename("/c", 0, "/d/e/g")
    await namespace.rename("/d", 0, "/z")
    assert pooled.term.core.tables.path(namespace.find("", made.id)) == "/z/e/g"


async def test_directories(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    made = await namespace.create_directory("/x/y", create_parents=True)
    assert await namespace.create_directory("/x/y") == made
    with pytest.raises(FailedPrecondition, match="not empty"):
        await namespace.delete("/x", 0, force=False)
    await namespace.delete("/x/y", 0, force=False)
    await namespace.delete("/x", 0, force=False)
    with pytest.raises(NotFound):
        await namespace.delete("/x", 0, force=False)


async def test_listing_pages(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    for path in ("/b/2", "/b/1", "/a", "/b.x", "/c/d/e"):
        await namespace.create_volume(path, GiB, create_parents=True)
    path_of = pooled.term.core.tables.path
    seen: list[str] = []
    while True:
        page, more = namespace.list_directory("/", recursive=True, limit=2, start_after=seen[-1] if seen else "")
        seen += [path_of(entry) for entry in page]
        if not more:
            break
    assert seen == ["/a", "/b", "/b/1", "/b/2", "/b.x", "/c", "/c/d", "/c/d/e"]
    flat, _ = namespace.list_directory("/", recursive=False, limit=0, start_after="")
    assert [path_of(entry) for entry in flat] == ["/a", "/b", "/b.x", "/c"]


async def test_update(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    await namespace.create_volume("/a", GiB, labels={"k": "v", "old": "x"})
    changed = await namespace.update("/a", 0, throttle=(100, 0), labels={"old": "", "new": "y"})
    assert (changed.labels, changed.iops) == ({"k": "v", "new": "y"}, 100)
    assert (await namespace.update("/a", 0, throttle=None, labels={})).iops == 100


async def test_delete_refuses_what_is_used(pooled: Cluster) -> None:
    term = pooled.term
    made = await term.namespace.create_volume("/a", GiB)
    await term.attachments.attach("/a", 0, node="n1", read_only=False, force=False, timeout=5)
    with pytest.raises(InUse, match="attached to node n1"):
        await term.namespace.delete("/a", 0, force=True)
    await term.attachments.release("/a", 0, node="n1")
    opened = await term.attachments.open("/a", 0, epoch=0, write=True, client="host/1", timeout=5)
    with pytest.raises(InUse, match="host/1"):
        await term.namespace.delete("/a", 0, force=False)
    await term.attachments.close(made.id, opened.session.id)
    await term.namespace.delete("/a", 0, force=False)


async def test_everything_survives_a_change_of_leader(pooled: Cluster) -> None:
    namespace = pooled.term.namespace
    made = await namespace.create_volume("/d/a", 2 * GiB, owner="ann", labels={"x": "y"}, create_parents=True)
    await namespace.create_volume("/gone", GiB)
    await namespace.delete("/gone", 0, force=False)
    old = pooled.term
    await pooled.lead()
    assert pooled.term.namespace.find("/d/a", 0) == made
    assert [e.original_path for e in pooled.term.core.tables.recycled()] == ["/gone"]
    with pytest.raises(NotLeader):
        await old.namespace.create_volume("/late", GiB)
    await pooled.beats(1)
    new = await pooled.term.namespace.create_volume("/new", GiB)
    assert new.id not in {made.id} | {e.id for e in pooled.term.core.tables.recycled()}


async def test_an_unknown_outcome_ends_the_term(pooled: Cluster) -> None:
    term = pooled.term

    async def lost(puts: Any, deletes: Any) -> None:
        pooled.pairs.update(puts)  # it was applied, but nobody was told
        raise Unavailable("connection lost")

    await term.namespace.create_volume("/first", GiB)
    term.core.state._store.commit = lost
    with pytest.raises(Unavailable, match="not known"):
        await term.namespace.create_volume("/a", GiB)
    assert term.ended.is_set()
    with pytest.raises(NotLeader):
        await term.namespace.create_volume("/b", GiB)
    await pooled.lead()
    await pooled.beats(1)
    assert pooled.term.namespace.find("/a", 0).size == GiB
    assert (await pooled.term.namespace.create_volume("/a", GiB)).size == GiB  # the repeated request
