"""Commands in order, and offsets that move only over what is done."""

from __future__ import annotations

import pytest

from delta_sink.control import Command, Compact, Pause, Resume
from delta_sink.inbox import Inbox
from delta_sink.model import TopicPartition

P0, P1 = TopicPartition("control", 0), TopicPartition("control", 1)


def command(name: str, args=None) -> Command:
    return Command(name, "/t", args or Compact())


@pytest.fixture
def inbox():
    found = Inbox()
    found.assign([P0, P1])
    assert found.unread() == [P0, P1]
    assert found.start(P0, 5)
    assert found.start(P1, 0)
    assert not found.start(P1, 7)  # it is read already
    return found


def fill(inbox: Inbox, *names: str) -> None:
    for offset, name in enumerate(names, 5):
        inbox.add(P0, offset, command(name))
    inbox.passed(P0, 5 + len(names))


def test_offsets_move_over_what_is_done_and_no_further(inbox):
    fill(inbox, "a", "b", "c")
    a, b, c = inbox.take(), inbox.take(), inbox.take()
    assert inbox.take() is None
    b.is_done = True
    assert inbox.to_commit() == {}
    a.is_done = True
    assert inbox.to_commit() == {P0: 7}
    assert inbox.to_commit() == {}  # the group is told once
    c.is_done = True
    assert inbox.to_commit() == {P0: 8}


def test_what_is_nobodys_command_is_passed_over(inbox):
    inbox.passed(P0, 9)
    assert inbox.to_commit() == {P0: 9}
    assert inbox.reads_at() == {P0: 9, P1: 0}


def test_a_revoked_partition_moves_no_offset_any_more(inbox):
    fill(inbox, "a", "b")
    a = inbox.take()
    inbox.revoke([P0])
    a.is_done = True
    assert inbox.take() is None
    assert inbox.to_commit() == {}
    inbox.add(P0, 9, command("late"))
    inbox.passed(P0, 10)
    assert inbox.reads_at() == {P1: 0}
    assert not inbox.start(P0, 3)


def test_an_offset_that_is_gone_begins_anew(inbox):
    fill(inbox, "a")
    inbox.restart(P0)
    assert inbox.unread() == [P0]
    assert inbox.take() is None
    assert inbox.start(P0, 40)
    assert inbox.reads_at()[P0] == 40
    inbox.restart(TopicPartition("control", 9))  # not ours: nothing happens
    assert TopicPartition("control", 9) not in inbox.partitions


def test_a_resume_waits_for_the_pause_before_it(inbox):
    inbox.add(P0, 5, command("pause", Pause("writer")))
    inbox.add(P0, 6, command("resume", Resume("writer")))
    inbox.add(P0, 7, command("compact"))
    inbox.add(P1, 0, command("other", Pause("maintenance")))
    pause = inbox.take()
    assert pause.command.id == "pause"
    assert [inbox.take().command.id for _ in range(2)] == ["compact", "other"]
    assert inbox.take() is None
    pause.is_done = True
    assert inbox.take().command.id == "resume"
