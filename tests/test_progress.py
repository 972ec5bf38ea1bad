"""Progress: what is logged, and how a signal ends a loop."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest
from traces import executions

from nstvis.runs import progress
from nstvis.runs.profiling import profiling
from nstvis.runs.progress import Interrupted, Progress, interruptible, track

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


@pytest.fixture
def clock(monkeypatch):
    """The time, which stands still."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def test_items_are_tracked_in_about_ten_log_lines(caplog, clock):
    caplog.set_level("INFO", "nstvis")
    for item in track(range(26), 26, "letters"):
        assert clock[0] == item
        clock[0] += 1
    assert 8 <= len(caplog.messages) <= 11
    assert caplog.messages[0].startswith("step 3 of 26: ")
    assert caplog.messages[0].endswith("letters")


def test_a_loop_of_a_moment_is_one_line(caplog, clock):
    caplog.set_level("INFO", "nstvis")
    for _ in track(range(26), 26, "letters"):
        clock[0] += 0.03
    assert caplog.messages == ["step 26 of 26: 0:00 left, letters"]


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


@pytest.mark.parametrize("counted", [True, False])
def test_costs_that_are_no_count_tell_the_time_left_but_no_speed(counted, monkeypatch):
    seconds = iter([0, 1, 2])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with Progress([1e12, 1e12, 4e12], counted=counted) as loop:
        loop.show(1, "")
        loop.show(2, "")
        assert loop.left() == 4
        assert loop._pace() == f"0:04 left, {'1000 GFLOP/s, ' * counted}"


def test_a_long_loop_tells_each_minute_how_long_it_takes(caplog, clock):
    caplog.set_level("INFO", "nstvis")
    for _ in track(range(2000), 2000, "images"):
        clock[0] += 3
        if clock[0] > 3 * 100:
            break
    # The first one after five seconds; 2000 steps of three seconds are 100 minutes.
    told = [line.split(":", 1)[0] for line in caplog.messages]
    assert told == [f"step {step} of 2000" for step in (2, 22, 42, 62, 82)]
    assert caplog.messages[0].endswith(": 1 h 39:54 left, images")
    assert caplog.messages[1].endswith(": 1 h 38:54 left, images")


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


@jax.jit
def squared(x):
    for _ in range(20):
        x = jnp.tanh(x @ x)
    return x


def squares(count, done=0):
    """Yields steps that are still being computed, as those of `minimize` are."""
    x = squared(jnp.ones((400, 400)))
    for step in track(range(count - done), count, "squares", done=done):
        x = squared(x)
        yield step


def test_the_steps_after_the_warm_up_are_traced_to_their_ends(caplog, tmp_path):
    caplog.set_level("INFO", "nstvis")
    with profiling(tmp_path / "my traces", 3):
        assert len([*squares(14, 5)]) == 9
    assert executions(tmp_path, "squared") == 3
    (line,) = [text for text in caplog.messages if "profile" in text]
    opened = f"pip install xprof && xprof --logdir='{tmp_path / 'my traces'}'"
    assert line == f"profiled 3 of 3 steps: {opened}"


def test_the_first_loop_that_is_long_enough_is_traced(tmp_path):
    with profiling(tmp_path, 3):
        assert [*track(range(7), 7, "items")]
        assert [*squares(8)]
        assert [*track(range(50), 50, "items")]
    assert executions(tmp_path, "squared") == 3


def test_no_loop_that_is_long_enough_is_said(caplog, tmp_path):
    caplog.set_level("INFO", "nstvis")
    with profiling(tmp_path, 3):
        assert [*track(range(7), 7, "items")]
    assert caplog.messages[-1] == "nothing was profiled: no loop had 8 steps left"
    caplog.clear()
    with profiling(tmp_path, 0):
        assert [*track(range(50), 50, "items")]
    assert not [text for text in caplog.messages if "profile" in text]
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("signals", [0, 1, 2])
def test_a_loop_that_ends_early_leaves_what_was_traced(signals, caplog, tmp_path):
    """By an error, by one signal, and by two, at the third step that is traced."""
    caplog.set_level("INFO", "nstvis")
    stop = KeyboardInterrupt if signals else ZeroDivisionError
    with pytest.raises(stop), profiling(tmp_path, 5):
        for step in squares(50):
            for _ in range(signals if step == 4 else 0):
                os.kill(os.getpid(), signal.SIGTERM)
            if step == 4 and not signals:
                raise ZeroDivisionError
    count = 3 if signals == 1 else 2
    assert caplog.messages[-1].startswith(f"profiled {count} of 5 steps: ")
    # What is still being computed is waited for unless the loop has to end at once.
    assert executions(tmp_path, "squared") <= count
    assert signals != 1 or executions(tmp_path, "squared") == count
    with profiling(tmp_path / "next", 1):
        assert [*squares(8)]
    assert executions(tmp_path / "next", "squared") == 1
