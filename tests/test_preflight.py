"""The preflight: what it says is so, and it leaves nothing but what it said."""

import json

import jax
import pytest
from launcher import launch

from nstvis import devices, launcher
from nstvis.runs import preflight
from nstvis.runs.progress import Interrupted, Progress, Rehearsal

SMALL = "--config.size=48 --config.scales=1 --config.weights=random"
SMALL += " --config.style_loss=gram"  # which compiles sooner


@pytest.mark.slow
def test_a_command_is_rehearsed_and_leaves_nothing(tmp_path):
    command = f"--experiment=style {SMALL} --config.steps=40"
    flags = [f"--config.command={command}", f"--workdir={tmp_path}"]
    for _ in range(2):  # it may be repeated
        done = launch("--experiment=preflight", *flags)
        assert done.returncode == 0, done.stderr
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"nstvis.log", "preflight.txt", "run.json"}
    text = (tmp_path / "preflight.txt").read_text()
    assert "hosts: 1, this is host 0" in text
    assert f"workdir: {tmp_path} is one folder that every host can write to" in text
    # Three steps are under way when the tenth is shown.
    assert "for the 27 steps that this loop has left" in text
    assert "results" not in json.loads((tmp_path / "run.json").read_text())


@pytest.mark.slow
def test_a_data_set_is_read_and_a_short_run_is_done_whole(drawn, tmp_path):
    command = "--experiment=evaluate --config.weights=random --config.size=32"
    command += " --config.dataset=primitives --config.split=validation"
    command += " --config.batch=310"
    flags = [f"--config.command={command}", f"--workdir={tmp_path}"]
    done = launch("--experiment=preflight", *flags)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "preflight.txt").read_text()
    assert "data: 1240 images, 31 classes, " in text
    assert "rehearsal: the whole run is done in " in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--experiment=styel", "did you mean 'style'"),
        ("--experiment=style --config.size=x", "size"),
        ("--experiment=style --config.size=0", "size"),
        ("--config.size=9", "no --experiment in the command"),
    ],
)
def test_a_wrong_command_is_refused_before_any_work(
    command, message, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(devices, "connect", lambda: None)  # this process is
    flags = [f"--config.command={command}", f"--workdir={tmp_path / 'run'}"]
    assert launcher.main(["launch.py", "--experiment=preflight", *flags]) == 1
    assert message in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_hosts_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.devices, "wait_for_all", lambda: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="does not see what host 1 wrote"):
        preflight.writable(tmp_path)


def test_a_rehearsal_ends_long_loops_and_no_short_ones():
    def loop(steps):
        with Progress([0.0] * steps) as progress:
            for step in range(1, steps + 1):
                progress.show(step, "")
                if progress.interrupted:
                    return

    with Rehearsal(5) as rehearsal:
        loop(5)
        assert (len(rehearsal.times), rehearsal.left) == (5, 0)
        with pytest.raises(Interrupted):
            loop(9)
    assert (len(rehearsal.times), rehearsal.left) == (5, 4)
    loop(9)
