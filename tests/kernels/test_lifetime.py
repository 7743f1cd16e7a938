"""How long borrowed memory is held, with mocked device events."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from substyle.kernels.dispatch import BorrowedMemory

STREAM: Any = object()


class Memory:
    pass


class Event:
    """An event that is completed by the test."""

    made: list[Event]

    def __init__(self) -> None:
        self.there, self.recorded, self.waited = False, None, 0
        Event.made.append(self)

    def record(self, stream: Any) -> None:  # noqa: ANN401
        self.recorded = stream

    def query(self) -> bool:
        return self.there

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    Event.made = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return Event.made


def test_held_until_the_readers_have_ended(events: list[Event]) -> None:
    held, memory = BorrowedMemory(), Memory()
    seen = weakref.ref(memory)
    held.until(STREAM, memory)
    assert events[0].recorded is STREAM
    del memory
    gc.collect()
    assert seen() is not None
    held.until(STREAM)  # no work has finished yet
    assert seen() is not None
    events[0].there = True
    held.until(STREAM)
    gc.collect()
    assert seen() is None
    assert len(held) == 2


def test_the_oldest_readers_are_waited_for(events: list[Event]) -> None:
    held = BorrowedMemory(most=2)
    for _ in range(4):
        held.until(STREAM, Memory())
    assert len(held) == 2
    assert [event.waited for event in events] == [1, 1, 0, 0]
