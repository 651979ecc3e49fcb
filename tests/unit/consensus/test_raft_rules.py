"""The rules that are easy to get wrong, one by one, on members that move only when told."""

from __future__ import annotations

import pytest
from raft_lab import CONFIG, Lab, commands, entry

from curve_storage.consensus.api import Role
from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.entry import NOOP
from curve_storage.consensus.raft_messages import (
    APPEND,
    APPEND_REPLY,
    HEARTBEAT,
    PREVOTE,
    TIMEOUT_NOW,
    VOTE,
    VOTE_REPLY,
    Message,
)
from curve_storage.errors import NotLeader

LEASE = CONFIG.lease * (1 - CONFIG.drift)


# 1. The leader sends before its own disk, but counts itself only after it.


def test_leader_sends_at_once_and_counts_itself_only_when_durable() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.cut = {3}
    lab.members[1].persist = False
    index = leader.propose([(b"a", b"")], lab.now)
    sent = lab.settle()
    assert any(message.kind == APPEND and message.entries for message in sent)
    assert leader.progress[2].match == index
    assert leader.commit == index - 1, "one disk of three is no majority"
    lab.members[1].sync()
    lab.settle()
    assert leader.commit == index
    assert commands(lab, 1) == [b"a"]


# 2. A follower acknowledges after its disk, and one sync answers many appends.


def test_follower_acknowledges_the_position_its_disk_has_reached() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.members[2].persist = False
    for number in range(5):
        leader.propose([(b"%d" % number, b"")], lab.now)
        lab.settle()
    assert leader.progress[2].match == 1
    follower = lab.members[2]
    numbers = list(follower.unpersisted)
    follower.raft.persisted(numbers[-1])
    replies = [message for message in follower.work() if message.kind == APPEND_REPLY]
    assert [reply.index for reply in replies] == [leader.log.last]


def test_late_disk_report_does_not_vouch_for_replaced_entries() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.cut = {2, 3}
    follower = lab.members[2]
    follower.persist = False
    old = leader.term
    lab.members[1].work()
    follower.raft.step(Message(APPEND, 1, 1, 2, old, 1, old, 1, 5, entries=[entry(2, old), entry(3, old)]), lab.now)
    follower.work()
    follower.raft.step(Message(APPEND, 1, 3, 2, old + 1, 1, old, 1, 6, entries=[entry(2, old + 1)]), lab.now)
    follower.work()
    first, second = follower.unpersisted
    follower.raft.persisted(first)
    assert follower.raft.persisted_index == 1, "the first batch held entries that were replaced meanwhile"
    follower.raft.persisted(second)
    assert follower.raft.persisted_index == 2


# 3. Vote and term are durable before anything reveals them.


def test_no_vote_leaves_before_it_is_durable() -> None:
    lab = Lab(1, 2, 3)
    voter = lab.members[2]
    voter.persist = False
    voter.raft.step(Message(VOTE, 1, 1, 2, 1, 0, 0), lab.now)
    assert not voter.work()
    assert voter.last.hard_state == (1, 1)
    voter.sync()
    assert [message.kind for message in voter.work()] == [VOTE_REPLY]


def test_candidate_neither_asks_nor_counts_itself_before_its_vote_is_durable() -> None:
    lab = Lab(1)
    lab.members[1].persist = False
    lab.raft(1).campaign()
    lab.settle()
    assert lab.raft(1).role is Role.CANDIDATE
    lab.members[1].sync()
    lab.settle()
    assert lab.raft(1).role is Role.LEADER


# 4. Only entries of the present term are committed by counting.


def test_new_leader_commits_earlier_entries_only_with_its_own() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.cut = {3}
    lab.members[2].persist = False
    index = leader.propose([(b"old", b"")], lab.now)
    lab.settle()
    assert leader.commit < index
    lab.members[2].sync()
    lab.members[2].persist = True
    lab.cut = {1}
    lab.now += 5
    successor = lab.raft(2)
    lab.members[3].raft.set_now(lab.now)
    successor.set_now(lab.now)
    successor.campaign()
    lab.settle()
    assert successor.role is Role.LEADER
    assert successor.log.entries[-1].kind == NOOP
    assert successor.commit == successor.log.last
    # The same with the empty entry still on its way: a majority has the old entry, and that is not enough.
    successor._check_commit = True
    successor.commit = index - 1
    successor.progress[3].match = index
    successor.persisted_index = index
    successor.advance_commit()
    assert successor.commit == index - 1


# 5. Pre-vote and check-quorum.


def test_partitioned_member_raises_no_term_and_disturbs_nobody_on_return() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.cut = {3}
    lab.advance(10)
    assert lab.raft(3).term == leader.term
    lab.cut = set()
    lab.advance(1)
    assert lab.leaders() == [1]
    assert leader.term == lab.raft(3).term == 1


def test_leader_without_a_quorum_steps_down_and_has_no_lease() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.advance(0.5)
    assert leader.lease_valid(lab.now)
    lab.cut = {1}
    lab.advance(LEASE + 0.05)
    assert not leader.lease_valid(lab.now)
    lab.advance(1)
    assert leader.role is not Role.LEADER
    assert lab.leaders() and lab.leaders() != [1]


def test_voter_that_hears_the_leader_refuses_votes() -> None:
    lab = Lab(1, 2, 3)
    lab.elect(1)
    lab.advance(0.3)
    term = lab.raft(2).term
    lab.raft(2).step(Message(VOTE, 1, 3, 2, term + 5, 100, term + 4), lab.now)
    assert lab.raft(2).term == term
    assert not lab.members[2].work()
    lab.raft(2).step(Message(PREVOTE, 1, 3, 2, term + 1, 100, term), lab.now)
    assert [message.reject for message in lab.members[2].work()] == [True]


# 6. Lease reads.


def test_lease_counts_from_the_sending_not_from_the_answer() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.advance(0.3)
    leader.tick(lab.now + 0.2)
    sent = leader.now
    beats = [message for message in lab.members[1].work() if message.kind == HEARTBEAT]
    lab.now += 0.9
    for beat in beats:
        lab.raft(beat.dst).step(beat, lab.now)
    for number in (2, 3):
        for reply in lab.members[number].work():
            leader.last_tick = lab.now
            leader.step(reply, lab.now)
    assert leader.lease_until() == pytest.approx(sent + LEASE, abs=1e-6)
    assert not leader.lease_valid(lab.now)


def test_paused_leader_has_no_lease_until_a_quorum_answers_anew() -> None:
    lab = Lab(1, 2, 3, config=RaftConfig(hibernate_after=0.0, pause=0.2))
    leader = lab.elect(1)
    lab.advance(0.5)
    assert leader.lease_valid(lab.now)
    assert not leader.lease_valid(lab.now + 0.25), "no tick for longer than the bound"
    lab.now += 0.25
    lab.cut = {2, 3}
    leader.tick(lab.now)
    lab.members[1].work()
    assert not leader.lease_valid(lab.now), "answers from before the pause do not count"
    lab.cut = set()
    lab.advance(0.2)
    assert leader.lease_valid(lab.now)


def test_transferring_leader_serves_no_lease_read_until_after_the_transfer_failed() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.advance(0.5)
    lab.cut = {2}
    leader.transfer(2, lab.now)
    assert not leader.lease_valid(lab.now)
    with pytest.raises(NotLeader):
        leader.propose([(b"x", b"")], lab.now)
    lab.settle()
    late = [message for message in lab.dropped if message.kind == TIMEOUT_NOW]
    assert late
    lab.cut = set()
    lab.advance(0.9)
    assert not leader.lease_valid(lab.now)
    lab.advance(0.8)
    assert leader.lease_valid(lab.now)
    # The order to campaign arrives at last: it has been overtaken.
    lab.raft(2).step(late[0], lab.now)
    lab.settle()
    assert lab.leaders() == [1]


def test_forced_vote_is_refused_by_who_heard_the_leader_go_on() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.advance(1)
    stamp = lab.raft(3).leader_stamp
    term = leader.term
    lab.raft(3).step(Message(VOTE, 1, 2, 3, term + 1, leader.log.last, term, stamp=stamp - 1, reject=True), lab.now)
    assert lab.raft(3).term == term
    lab.raft(3).step(Message(VOTE, 1, 2, 3, term + 1, leader.log.last, term, stamp=stamp, reject=True), lab.now)
    assert lab.raft(3).vote == 2


def test_restarted_voter_waits_for_leases_granted_before() -> None:
    lab = Lab(1, 2, 3)
    raft = lab.raft(2)
    raft.term, raft.contact = 3, lab.now
    raft.step(Message(VOTE, 1, 1, 2, 4, 9, 3), lab.now + 0.1)
    assert raft.term == 3
    raft.step(Message(VOTE, 1, 1, 2, 4, 9, 3), lab.now + CONFIG.lease + 0.1)
    assert (raft.term, raft.vote) == (4, 1)


def test_read_index_waits_for_a_round_begun_after_it_and_is_batched() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.advance(0.3)
    lab.cut = {2, 3}
    numbers = [leader.read(lab.now) for _ in range(10)]
    sent = [message for message in lab.settle() if message.kind == HEARTBEAT]
    assert len(sent) == 2, "one round for all"
    assert not lab.members[1].reads
    lab.cut = set()
    for message in sent[:1]:
        lab.raft(message.dst).step(message, lab.now)
    lab.settle()
    assert lab.members[1].reads == numbers


def test_reads_wait_for_the_first_entry_of_a_new_leader_and_fail_with_it() -> None:
    lab = Lab(1, 2, 3)
    lab.members[2].persist = lab.members[3].persist = True
    raft = lab.raft(1)
    raft.campaign()
    while raft.role is not Role.LEADER:
        for member in lab.members.values():
            for message in member.work():
                lab.raft(message.dst).step(message, lab.now)
            if raft.role is Role.LEADER:
                break
    lab.cut = {2, 3}
    number = raft.read(lab.now)
    lab.settle()
    assert not lab.members[1].reads
    lab.advance(2)
    assert raft.role is not Role.LEADER
    assert lab.members[1].failed_reads == [number]


# A change of members must not wait for traffic: the learner's snapshot may be all that it lacked.


def test_a_learner_made_equal_by_a_snapshot_ends_the_wait_of_a_change() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    leader.change_members((1, 2, 4), lab.now)
    lab.settle()  # node 4 answers nothing: it is a learner of which the leader knows nothing
    assert leader.membership.learners == (4,) and not leader.membership.outgoing
    progress = leader.progress[4]
    progress.snapshot()
    leader.snapshot_done(4, leader.log.last, lab.now)
    lab.settle()
    assert leader.membership.voters == (1, 2, 4), "the joint step was not taken"


def test_a_learner_that_has_caught_up_unnoticed_is_seen_at_the_next_tick() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    leader.change_members((1, 2, 4), lab.now)
    lab.settle()
    progress = leader.progress[4]
    progress.match = leader.log.last
    progress.replicate()
    lab.advance(0.1)
    assert leader.membership.voters == (1, 2, 4), "the joint step was not taken"
