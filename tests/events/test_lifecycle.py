"""The table of transitions is complete and consistent."""

from __future__ import annotations

from app.events.catalogue import CATALOGUE
from app.events.lifecycle import FENCED, INITIAL, TERMINAL, TRANSITIONS, advance
from app.events.queue import HELD

STATES = {INITIAL, *TERMINAL, *HELD}


def test_the_table_is_closed() -> None:
    used = {state for row in TRANSITIONS.values() for pair in row.items() for state in pair}
    assert used - {None} == STATES
    assert set(TRANSITIONS) <= set(CATALOGUE)
    assert set(TRANSITIONS) >= FENCED
    assert {t for t in CATALOGUE if t.startswith("request.")} == set(TRANSITIONS) - {
        "tokens.generated"
    }


def test_nothing_leaves_a_terminal_state_and_every_other_can_end() -> None:
    for state in TERMINAL:
        assert all(advance(state, event) is None for event in TRANSITIONS)
    for state in STATES - TERMINAL:
        ends = {advance(state, event) for event in TRANSITIONS} & TERMINAL
        assert {"failed", "cancelled"} <= ends


def test_every_held_state_can_be_given_back() -> None:
    assert {s for s in STATES if advance(s, "request.abandoned") == INITIAL} == HELD
