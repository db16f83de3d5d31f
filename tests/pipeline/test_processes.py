"""Signals while a store is in between two states: kept, let through once, and heard at the latest at the third."""

import os
import signal
import threading
from contextlib import nullcontext

import pytest

from pipeline.processes import undisturbed

pytestmark = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    before, done = signal.getsignal(number), False
    with pytest.raises(KeyboardInterrupt), undisturbed():
        _send(number)
        done = True
    assert done and signal.getsignal(number) is before


def test_a_signal_that_was_kept_ends_a_lifted_block_at_its_start(number: signal.Signals) -> None:
    begun = False
    with pytest.raises(KeyboardInterrupt), undisturbed() as guard:
        _send(number)
        with guard.lifted():
            begun = True
    assert not begun


def test_clearing_up_after_the_first_signal_is_not_interrupted_by_the_second(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), undisturbed() as guard:
        try:
            with guard.lifted():
                try:
                    _send(number)
                    steps.append("went on")
                finally:
                    _send(number)
                    steps.append("closed")
        finally:
            steps.append("listed")
    assert steps == ["closed", "listed"]


def test_a_kept_signal_is_followed_by_one_that_is_kept_too(number: signal.Signals) -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        _send(number)
        steps.append("first")
        _send(number)
        steps.append("second")
    assert steps == ["first", "second"]


@pytest.mark.parametrize("lifted", [True, False])
def test_the_third_signal_ends_clearing_up_that_takes_too_long(number: signal.Signals, lifted: bool) -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), undisturbed() as guard, guard.lifted() if lifted else nullcontext():
        try:
            _send(number)
        finally:
            _send(number)
            steps.append("second")
            _send(number)
            steps.append("third")
    assert steps == ["second"]


def test_an_error_is_raised_as_it_is(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(ValueError, match="broken"), undisturbed() as guard, guard.lifted():
        raise ValueError("broken")
    assert signal.getsignal(number) is before


def test_in_another_thread_nothing_is_changed(number: signal.Signals) -> None:
    before, inside = signal.getsignal(number), []

    def work() -> None:
        with undisturbed() as guard, guard.lifted():
            inside.append(signal.getsignal(number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
