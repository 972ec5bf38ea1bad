"""Checkpoints: which are kept, when they are due, and what cut ones do."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np

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
