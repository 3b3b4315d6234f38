"""What a full host looks for, and what it says about those who waited."""

from __future__ import annotations

from app.engine.room import Room


def test_a_full_host_looks_once_for_each_thing_that_may_outrank_what_it_holds() -> None:
    room = Room()
    assert room.wanted(0)  # nothing is known yet
    room.served(0)
    assert not room.wanted(0)
    room.note(0)
    assert not room.wanted(0)
    room.note(3)
    assert room.wanted(0) and room.wanted(2) and not room.wanted(3)
    room.served(0)
    assert not room.wanted(0)


def test_why_a_request_was_not_claimed_when_it_came() -> None:
    room = Room()
    room.opened(10.0)
    assert room.waited(9.0) == "worker"
    assert room.waited(11.0) == ""
    room.filled()
    assert room.waited(12.0) == "room"  # it is taken all the same, as it is urgent
    room.emptied(20.0)
    assert room.waited(15.0) == "room"
    assert room.waited(21.0) == ""
    room.emptied(30.0)  # it was not full
    assert room.waited(21.0) == ""
