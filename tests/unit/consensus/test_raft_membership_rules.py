"""Rules of membership changes, snapshots, flow control and hibernation, on members that move only when told."""

from __future__ import annotations

import pytest
from raft_lab import CONFIG, Lab, commands, entry

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.raft import Raft
from curve_storage.consensus.raft_messages import APPEND, PREVOTE, VOTE, Message
from curve_storage.consensus.raft_progress import REPLICATE
from curve_storage.errors import FailedPrecondition

# 7. Membership.


def test_replacement_learns_first_then_joins_in_one_joint_step() -> None:
    lab = Lab(1, 2, 3, spares=(4,), config=RaftConfig(hibernate_after=0.0, learner_lag=0))
    leader = lab.elect(1)
    seen: list[Membership] = []
    leader.change_members((1, 2, 4), lab.now)
    for _ in range(50):
        lab.advance(0.04)
        if not seen or seen[-1] != leader.membership:
            seen.append(leader.membership)
    final = Membership(voters=(1, 2, 4), epoch=2)
    assert seen[-1] == final
    assert leader.change == "done"
    assert lab.raft(4).role is Role.FOLLOWER
    configs = [each for each in lab.members[1].storage.entries.values() if each.kind == 2]
    assert len(configs) == 3, "learner, joint, final"


def test_one_change_at_a_time() -> None:
    lab = Lab(1, 2, 3, spares=(4, 5))
    leader = lab.elect(1)
    lab.cut = {4}
    leader.change_members((1, 2, 4), lab.now)
    lab.advance(0.5)
    with pytest.raises(FailedPrecondition):
        leader.change_members((1, 2, 5), lab.now)
    leader.change_members((1, 2, 4), lab.now)  # the same again is no other change


def test_change_to_a_dead_member_is_given_up_and_leaves_no_learner() -> None:
    lab = Lab(1, 2, 3, spares=(4,), config=RaftConfig(hibernate_after=0.0, change_timeout=3.0))
    leader = lab.elect(1)
    lab.cut = {4}
    leader.change_members((1, 2, 4), lab.now)
    lab.advance(5)
    assert leader.change == "failed"
    assert "node 4" in leader.change_error
    assert leader.membership == Membership(voters=(1, 2, 3))


def test_removed_leader_finishes_the_change_and_steps_down() -> None:
    lab = Lab(1, 2, 3, spares=(4,))
    leader = lab.elect(1)
    leader.change_members((2, 3, 4), lab.now)
    lab.advance(3)
    assert leader.role is not Role.LEADER
    (successor,) = lab.leaders()
    assert successor != 1
    assert lab.raft(successor).membership == Membership(voters=(2, 3, 4), epoch=2)


def test_new_leader_completes_a_joint_membership() -> None:
    lab = Lab(1, 2, 3, spares=(4,))
    leader = lab.elect(1)
    leader.change_members((1, 2, 4), lab.now)
    for _ in range(200):
        for member in lab.members.values():
            for message in member.work():
                lab.raft(message.dst).step(message, lab.now)
        if lab.raft(2).membership.outgoing and lab.raft(4).membership.outgoing:
            break
    assert lab.raft(2).membership.outgoing
    lab.cut = {1}
    lab.advance(5)
    (successor,) = lab.leaders()
    assert successor in (2, 4)
    assert lab.raft(successor).membership == Membership(voters=(1, 2, 4), epoch=2)


def test_new_member_gives_no_vote_before_it_knows_itself_a_member() -> None:
    lab = Lab(1, 2, 3, spares=(4,))
    spare = lab.raft(4)
    spare.step(Message(VOTE, 1, 3, 4, 7, 100, 6), lab.now + 10)
    assert [message.reject for message in lab.members[4].work()] == [True]


def test_truncated_membership_is_no_longer_in_force() -> None:
    lab = Lab(1, 2, 3, spares=(4,))
    leader = lab.elect(1)
    lab.cut = {1}
    leader.change_members((1, 2, 4), lab.now)
    lab.settle()
    assert leader.membership.learners == (4,)
    lab.advance(3)
    lab.cut = set()
    lab.advance(2)
    assert leader.membership == Membership(voters=(1, 2, 3))


# 8. Snapshots.


def member_left_behind() -> tuple[Lab, Raft]:
    """3 is cut off while ten commands, "0" to "9", are committed; with the leader, 1."""
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.cut = {3}
    for number in range(10):
        leader.propose([(b"%d" % number, b"")], lab.now)
        lab.settle()
    return lab, leader


def test_member_behind_the_log_needs_a_snapshot_and_goes_on_from_there() -> None:
    lab, leader = member_left_behind()
    lab.raft(1).compact(8)
    lab.cut = set()
    lab.advance(0.5)
    assert lab.members[1].snapshots == [3], "asked for once"
    lab.raft(3).restore(8, leader.log.term(8) or 0, leader.membership_at(8), lab.now)
    leader.snapshot_done(3, 8, lab.now)
    lab.settle()
    assert lab.raft(3).log.last == leader.log.last
    lab.advance(0.3)
    assert commands(lab, 3) == [b"%d" % number for number in range(7, 10)]


def test_failed_snapshot_is_asked_for_again() -> None:
    lab, leader = member_left_behind()
    leader.compact(8)
    lab.cut = set()
    lab.advance(0.5)
    leader.snapshot_done(3, 0, lab.now)
    lab.advance(0.5)
    assert len(lab.members[1].snapshots) >= 2


# Flow control.


def test_window_bounds_what_is_on_the_way() -> None:
    lab = Lab(1, 2, 3, config=RaftConfig(hibernate_after=0.0, max_inflight_messages=3, max_append_entries=2))
    leader = lab.elect(1)
    lab.cut = {2, 3}
    leader.propose([(b"%d" % number, b"") for number in range(20)], lab.now)
    sent = [message for message in lab.settle() if message.kind == APPEND and message.dst == 2]
    assert [len(message.entries or ()) for message in sent] == [2, 2, 2]
    lab.cut = set()
    lab.advance(1)
    assert lab.raft(2).log.last == lab.raft(3).log.last == leader.log.last


def test_lost_appends_are_sent_again() -> None:
    lab = Lab(1, 2, 3)
    leader = lab.elect(1)
    lab.cut = {3}
    leader.propose([(b"a", b"")], lab.now)
    lab.settle()
    lab.cut = set()
    lab.advance(0.3)
    assert lab.raft(3).log.last == leader.log.last
    assert commands(lab, 3) == [b"a"]


# 10. Hibernation.

SLEEPY = RaftConfig(hibernate_after=0.5)


def test_idle_group_sleeps_without_a_message_and_wakes_with_a_proposal() -> None:
    lab = Lab(1, 2, 3, config=SLEEPY)
    leader = lab.elect(1)
    lab.advance(2)
    assert all(member.raft.hibernating for member in lab.members.values())
    lab.now += 1000
    assert not any(member.raft.tick(lab.now) for member in lab.members.values())
    assert lab.settle() == []
    assert not leader.lease_valid(lab.now)
    leader.propose([(b"a", b"")], lab.now)
    lab.settle()
    assert commands(lab, 1) == [b"a"]
    lab.advance(0.3)
    assert lab.leaders() == [1]
    assert leader.lease_valid(lab.now)


def test_sleeping_voter_keeps_the_lease_until_its_leader_falls_silent() -> None:
    lab = Lab(1, 2, 3, config=SLEEPY)
    lab.elect(1)
    lab.advance(2)
    follower = lab.raft(2)
    lab.now += 100
    follower.step(Message(PREVOTE, 1, 3, 2, 2, 100, 1), lab.now)
    assert [message.reject for message in lab.members[2].work()] == [True]
    other = lab.raft(3)
    other.wake(lab.now, lab.now - SLEEPY.election_timeout * 2)
    assert other.deadline <= lab.now


def test_group_with_a_missing_member_stays_awake() -> None:
    lab = Lab(1, 2, 3, config=SLEEPY)
    leader = lab.elect(1)
    lab.cut = {3}
    lab.advance(5)
    assert not leader.hibernating
    assert leader.lease_valid(lab.now) or leader.role is Role.LEADER


# Failure hints.


def test_suspicion_starts_an_election_earlier_but_never_inside_the_lease() -> None:
    lab = Lab(1, 2, 3)
    lab.elect(1)
    lab.advance(1)
    lab.cut = {1}
    contact = lab.raft(2).contact
    lab.raft(2).leader_lost(lab.now, dead=False)
    assert contact + CONFIG.lease <= lab.raft(2).election_at <= contact + CONFIG.lease + CONFIG.heartbeat


def test_certain_death_of_the_leader_needs_no_waiting() -> None:
    lab = Lab(1, 2, 3)
    lab.elect(1)
    lab.advance(1)
    lab.cut = {1}
    for number in (2, 3):
        lab.raft(number).leader_lost(lab.now, dead=True)
    lab.advance(0.3)
    assert len(lab.leaders()) == 2  # the old one has not noticed yet
    assert max(lab.leaders(), key=lambda number: lab.raft(number).term) in (2, 3)


# Found by the simulation.


def test_refusal_at_the_start_of_the_log_leads_to_a_snapshot_not_in_circles() -> None:
    lab, leader = member_left_behind()
    leader.compact(leader.log.last - 2)
    base = leader.log.base
    stale = lab.raft(3)
    for index in range(stale.log.last + 1, base + 5):  # from a leader that never had a majority
        stale.append_entry(entry(index, leader.term))
    stale.log._terms[-1] = stale.log._last_term = 0
    lab.members[3].work()
    lab.cut = set()
    sent: list[Message] = []
    for _ in range(20):
        lab.now += 0.13
        leader.tick(lab.now)
        sent += lab.settle()
    assert lab.members[1].snapshots == [3]
    assert len([message for message in sent if message.kind == APPEND and message.dst == 3]) < 10


def test_entries_that_a_restart_forgot_to_acknowledge_are_sent_again() -> None:
    lab = Lab(1, 2, 3, config=RaftConfig(hibernate_after=0.0, max_inflight_messages=2, max_append_entries=1))
    leader = lab.elect(1)
    follower = lab.members[3]
    follower.persist = False
    for _ in range(4):
        leader.propose([(b"x", b"")], lab.now)
        lab.settle()
    # As after a restart: the entries are on disk, nobody knows that they equal the leader's.
    raft = follower.raft
    follower.persist = True
    raft.persisted_index = raft.log.last
    raft._inflight.clear()
    follower.unpersisted.clear()
    raft.verified, raft._ack = raft.commit, False
    lab.advance(1)
    assert leader.progress[3].match == leader.log.last


def test_new_member_with_nothing_to_receive_is_probed() -> None:
    lab = Lab(1, 2, 3, spares=(4,))
    leader = lab.elect(1)
    leader.change_members((1, 2, 3, 4), lab.now)
    lab.advance(1)
    assert leader.change == "done"


def test_member_that_a_snapshot_made_equal_is_replicated_to_at_once() -> None:
    lab, leader = member_left_behind()
    leader.compact(leader.log.last)
    lab.cut = set()
    lab.advance(0.5)
    lab.raft(3).restore(leader.log.last, leader.term, leader.membership, lab.now)
    leader.snapshot_done(3, leader.log.last, lab.now)
    lab.advance(0.3)
    assert leader.progress[3].state == REPLICATE
