"""Progress: what is logged, and how a signal ends a loop."""

import os
import signal

import pytest

from nstvis.runs.progress import Interrupted, Progress, interruptible, track

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_items_are_tracked_in_about_ten_log_lines(caplog):
    caplog.set_level("INFO", "nstvis")
    assert list(track(range(26), 26, "letters")) == list(range(26))
    assert 8 <= len(caplog.messages) <= 11
    assert caplog.messages[0].startswith("step 3 of 26: ")
    assert caplog.messages[0].endswith("letters")


def test_what_an_earlier_start_did_is_counted(caplog):
    caplog.set_level("INFO", "nstvis")
    assert list(track([8, 9], 9, "patches", done=7)) == [8, 9]
    assert caplog.messages[0] == "resuming after step 7 of 9"
    assert caplog.messages[-1].startswith("step 9 of 9: ")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_the_loop_after_the_current_item(signum):
    seen = []
    with pytest.raises(Interrupted, match=f"^stopped by {signum.name}$") as caught:
        for item in track(range(9), 9, "items"):
            if item == 4:
                os.kill(os.getpid(), signum)
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    assert caught.value.signum == signum


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Progress([0]) as progress:
        os.kill(os.getpid(), signal.SIGTERM)
        assert progress.interrupted == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(ZeroDivisionError), Progress([0]):
        os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError


def test_leaving_a_loop_early_is_no_interruption():
    for item in track(range(9), 9, "items"):
        if item == 2:
            break
    with Progress([1.0, 2.0]) as progress:
        progress.show(1, "")
    assert not progress.interrupted
    assert list(track([], 0, "items")) == []


@pytest.mark.parametrize("signum", SIGNALS)
def test_outside_of_a_loop_a_signal_interrupts_at_once(signum):
    with pytest.raises(Interrupted, match=signum.name), interruptible():
        os.kill(os.getpid(), signum)
        pytest.fail("it went on")


class Garbage:
    """Python drops the exceptions of a finalizer."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_python_drops_comes_back():
    reached = []
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        Garbage()
        reached.append("the end")
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        Garbage()
        reached.extend(track(range(9), 9, "items"))
    assert reached == ["the end", 0]
