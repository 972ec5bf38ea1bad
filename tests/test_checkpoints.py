"""Checkpoints: which are kept, when they are due, and what damaged ones do."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nstvis.runs import checkpoints
from nstvis.runs.checkpoints import Checkpoints


def test_checkpoints_keep_the_newest_two_and_those_asked_for(tmp_path):
    def tree(x):
        return {"x": jnp.full((2, 3), x, jnp.float32), "n": jnp.int32(x)}

    with Checkpoints(tmp_path, 0, [2, 4]) as keeper:
        assert keeper.latest() == 0
        assert keeper.restore(fresh := tree(0)) is fresh
        for step in (2, 3, 7, 20):
            saved = tree(step + 0.1)
            keeper.save(step, saved)
            jax.tree.map(lambda leaf: leaf.delete(), saved)  # as donating it would
        keeper.save(20, tree(5))  # once saved, a step stays
    again = Checkpoints(tmp_path, 0)
    assert again.latest() == 20
    restored = again.restore(tree(0))
    assert restored["n"].dtype == jnp.int32
    assert np.array_equal(restored["x"], tree(20.1)["x"])
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["2", "20", "7"]


def test_checkpoints_are_due_after_their_interval(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    keeper = Checkpoints(tmp_path, 30)
    now = 129.0
    assert not keeper.due()
    now = 130.0
    assert keeper.due()


def test_checkpoints_ignore_one_that_was_cut_short(tmp_path):
    with Checkpoints(tmp_path, 0) as keeper:
        keeper.save(4, {"x": jnp.ones(3)})
    half = tmp_path / "checkpoints/9.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints/4", half)
    with Checkpoints(tmp_path, 0) as keeper:
        assert keeper.latest() == 4
        keeper.save(9, {"x": jnp.zeros(3)})
    assert np.array_equal(keeper.restore({"x": jnp.ones(3)})["x"], np.zeros(3))


def flip(path):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "lost": lambda path: path.unlink(),
    "of another shape": lambda path: path.write_text('{"a": [' * 5000),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints of steps 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, 0) as keeper:
        for step in (2, 3):
            keeper.save(step, {"x": jnp.full(300, step, jnp.float32)})
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_known_and_the_one_before_it_used(
    damage, saved, tmp_path, caplog
):
    caplog.set_level(logging.WARNING, "nstvis")
    newest = saved / "checkpoints/3"
    names = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(names) > 5
    for i, name in enumerate(names):
        if damage == "lost" and str(name) == checkpoints.DIGEST:
            continue  # as a kill may leave it
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        DAMAGES[damage](folder / "checkpoints/3" / name)
        caplog.clear()
        keeper = Checkpoints(folder, 0)
        assert keeper.latest() == 2, name
        line = f"{folder / 'checkpoints/3'} is damaged: going on from step 2"
        assert caplog.messages == [line]
        assert (folder / "damaged-checkpoint-3").is_dir()
    restored = keeper.restore({"x": jnp.zeros(300)})
    assert (restored["x"] == 2).all()
    with keeper:
        keeper.save(3, {"x": jnp.full(300, 5.0)})
    assert (Checkpoints(folder, 0).restore(restored)["x"] == 5).all()


def test_where_no_checkpoint_is_whole_the_run_says_so(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    for step in (2, 3):
        flip(tmp_path / f"checkpoints/{step}" / checkpoints.DIGEST)
    with pytest.raises(ValueError, match="no checkpoint in .* is whole: delete it"):
        Checkpoints(tmp_path, 0)
    assert checkpoints.kept_steps(tmp_path) == [2, 3]
    with pytest.raises(ValueError, match="checkpoints/3 is damaged$"):
        checkpoints.read_checkpoint(tmp_path, 3, {"x": jnp.zeros(300)})


def test_a_checkpoint_that_a_kill_left_without_digest_is_whole(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints/3" / checkpoints.DIGEST).unlink()
    assert (Checkpoints(tmp_path, 0).restore({"x": jnp.zeros(300)})["x"] == 3).all()
