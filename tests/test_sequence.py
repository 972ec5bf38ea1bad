"""Moving pictures: optical flow, frames, and their transfer, alone and by the launcher."""

import itertools
import signal
import struct

import jax
import jax.numpy as jnp
import launcher
import numpy as np
import pytest
import scipy.ndimage
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from test_runs import finish, signal_at, start, steps

from experiments import style as experiment
from nstvis import images
from nstvis.runs import config
from nstvis.synthesis import flow, frames, sequence


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


def picture(width=40, height=36, seed=0, channels=3):
    coarse = noise(6, 7, channels, seed=seed).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# Optical flow.


def test_a_flo_file_has_middleburys_bytes(tmp_path):
    """Tag, width, height, then u and v of each pixel, row by row."""
    values = [0.5, -1.25, 2, 3, 1e10, 0, -4, 5, 0, 2e9, 6, 7]
    content = b"PIEH" + struct.pack("<ii12f", 3, 2, *values)
    (tmp_path / "a.flo").write_bytes(content)
    assert flow.read_size(tmp_path / "a.flo") == (3, 2)
    found = flow.read(tmp_path / "a.flo")
    expected = np.float32(values).reshape(2, 3, 2)
    expected[0, 2] = expected[1, 1] = np.nan  # one unknown number makes both unknown
    np.testing.assert_array_equal(found, expected)
    flow.write(tmp_path / "b.flo", found)
    np.testing.assert_array_equal(flow.read(tmp_path / "b.flo"), expected)
    known = np.nan_to_num(found)
    flow.write(tmp_path / "c.flo", known)
    written = (tmp_path / "c.flo").read_bytes()
    assert written == b"PIEH" + struct.pack("<ii12f", 3, 2, *known.ravel())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .flo file"),
        (b"PIEH\0\0", "no .flo file"),
        (b"P6 3 2 255\n" + bytes(60), "no .flo file"),
        (
            b"PIEH" + struct.pack("<ii", 3, 2) + bytes(47),
            "59 bytes.*has 60: it was cut",
        ),
        (b"PIEH" + struct.pack("<ii", 3, 2) + bytes(49), "61 bytes.*has 60"),
        (b"PIEH" + struct.pack("<ii", -1, -1) + bytes(8), ".*or is damaged"),
    ],
)
def test_a_damaged_flo_file_is_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.flo: {message}") as refusal:
        flow.read(tmp_path / "a.flo")
    assert "\n" not in str(refusal.value)


def test_warping_is_bilinear_interpolation():
    """Against SciPy in float64, far beyond the edges included."""
    pixels = noise(1, 9, 11, 3)
    motion = np.random.default_rng(1).normal(0, 4, (9, 11, 2)).astype(np.float32)
    rows, columns = np.indices((9, 11))
    at = np.stack([rows + motion[..., 1], columns + motion[..., 0]]).astype(float)
    expected = [
        scipy.ndimage.map_coordinates(channel, at, order=1, mode="nearest")
        for channel in np.moveaxis(pixels[0].astype(float), -1, 0)
    ]
    found = flow.warp(pixels, motion)
    np.testing.assert_allclose(found[0], np.stack(expected, -1), rtol=1e-4)


@settings(deadline=None, max_examples=50)
@given(
    arrays.arrays(np.int8, (5, 6, 2), elements=st.integers(-7, 7)),
    arrays.arrays(np.bool_, (5, 6)),
)
def test_whole_pixels_are_moved_exactly(steps, known):
    """By brute force; pixels from outside, or of unknown flow, are told apart."""
    motion = np.where(known[..., None], steps, np.nan).astype(np.float32)
    pixels = noise(5, 6, 1)
    found, told = np.asarray(flow.warp(pixels, motion)), flow.traceable(motion)
    for y, x in np.ndindex(5, 6):
        u, v = steps[y, x] if known[y, x] else (0, 0)
        inside = 0 <= x + u < 6 and 0 <= y + v < 5
        assert told[y, x] == (inside and known[y, x])
        if inside:
            assert found[y, x] == pixels[y + v, x + u]


def test_a_flow_is_scaled_with_its_vectors():
    motion = np.full((8, 12, 2), [6, -4], np.float32)
    found = flow.resize(motion, 6, 2)
    np.testing.assert_allclose(found, np.full((2, 6, 2), [3, -1]), rtol=1e-6)
    motion[:, :6] = np.nan
    found = flow.resize(motion, 6, 2)
    assert np.isnan(found[:, :3]).all()
    np.testing.assert_allclose(found[:, 3:], np.full((2, 3, 2), [3, -1]), rtol=1e-6)


# Frames.


def test_names_are_sorted_by_the_numbers_in_them():
    names = ["a2.png", "a10.png", "a1.png", "B1.png", "10.png", "9.png", "a1b.png"]
    expected = ["9.png", "10.png", "a1.png", "a1b.png", "a2.png", "a10.png", "B1.png"]
    assert sorted(names, key=frames.naturally) == expected


def write_frames(folder, count, size=(40, 36)):
    """Frames whose names sort wrongly as text, and what is no frame."""
    folder.mkdir()
    for i in range(count):
        picture(*size, seed=i).save(folder / f"{9 + i}.png")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    return folder


def test_frames_are_read_in_order_from_a_folder_or_an_animation(tmp_path):
    folder = write_frames(tmp_path / "frames", 3)
    found = frames.Frames(str(folder))
    assert (len(found), found.size) == (3, (40, 36))
    for i in range(3):
        assert found[i].tobytes() == picture(seed=i).tobytes()
    files = [folder / f"{9 + i}.png" for i in range(3)]
    frames.write_animation(tmp_path / "a.gif", files, 30)
    moving = frames.Frames(str(tmp_path / "a.gif"))
    assert (len(moving), moving.size) == (3, (40, 36))
    for i in range(3):  # 256 colours are near
        assert np.abs(images.to_array(moving[i]) - images.to_array(found[i])).mean() < 8


@pytest.mark.parametrize("rate", [12, 30, 50])
def test_an_animation_takes_as_long_as_its_rate_says(rate, tmp_path):
    folder = write_frames(tmp_path / "frames", 7)
    frames.write_animation(tmp_path / "a.gif", sorted(folder.glob("[0-9]*.png")), rate)
    with Image.open(tmp_path / "a.gif") as moving:
        times = []
        for i in range(moving.n_frames):
            moving.seek(i)
            times.append(moving.info["duration"])
        assert moving.info["loop"] == 0
    assert len(times) == 7
    assert sum(times) == 10 * round(700 / rate)


def test_content_that_is_no_sequence_is_refused_in_one_line(tmp_path):
    def refused(path, message):
        with pytest.raises((ValueError, OSError), match=message) as refusal:
            frames.Frames(str(path))
        assert "\n" not in str(refusal.value)

    refused(tmp_path / "nowhere", "no such file")
    refused(tmp_path, "has no file that ends in .jpg")
    folder = write_frames(tmp_path / "frames", 3)
    refused(folder / "9.png", "is a single picture: a sequence takes a folder")
    (folder / "20.png").write_bytes(b"no picture")
    refused(folder, "20.png: not readable")
    picture(36, 40).save(folder / "20.png")
    refused(folder, r"20.png has 36 x 40 pixels, the first frame 40 x 36")


# The transfer, of pictures that are large enough for two sizes.

WIDTH, HEIGHT = 72, 66


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The path of a network of two convolutions."""
    return small.write(tmp_path_factory.mktemp("network"))[0]


def quick(network, **changes):
    known = {
        "model": network,
        "weights": "random",
        "content_layers": "conv2",
        "style_layers": "conv1,conv2",
        "style_loss": "gram",
        "size": WIDTH,
        "scales": 2,
        "steps": 5,
        "frame_steps": 2,
        "margin": 2,
        "jitter": 4,
        "sequence": True,
    }
    return experiment.Config(**(known | changes))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Three frames, and two flows between them."""
    folder = tmp_path_factory.mktemp("video")
    write_frames(folder / "frames", 3, (WIDTH, HEIGHT))
    (folder / "flow").mkdir()
    for i in range(2):
        motion = np.random.default_rng(i).uniform(-3, 3, (HEIGHT, WIDTH, 2))
        flow.write(folder / "flow" / f"{i}.flo", motion.astype(np.float32))
    return folder


def transfer_of(video, chosen):
    content = frames.Frames(str(video / "frames"))
    return sequence.SequenceTransfer(content, [picture(50, 40, seed=9)], chosen)


def moments_of(transfer, *arguments):
    """All moments, their states on the host, as they are valid for one turn."""
    return [
        moment._replace(state=jax.tree.map(np.array, moment.state))
        for moment in transfer.run(*arguments)
    ]


@pytest.fixture(scope="module")
def along_flow(video, network):
    """A transfer along flow, and its moments."""
    transfer = transfer_of(video, quick(network, flow=str(video / "flow")))
    return transfer, moments_of(transfer)


@pytest.mark.slow
def test_frames_after_the_first_take_the_last_steps(along_flow):
    transfer, moments = along_flow
    assert len(transfer.costs) == 2 * 5 + 2 + 2
    steps = [(m.frame, m.step, m.whole) for m in moments if m.metrics]
    assert steps == [
        *((0, step, step == 10) for step in range(1, 11)),
        *((1, step, step == 12) for step in (11, 12)),
        *((2, step, step == 14) for step in (13, 14)),
    ]
    assert [int(m.metrics["step"]) for m in moments if m.metrics] == [*range(1, 15)]
    assert [transfer.frame(step) for step in range(15)] == [0] * 11 + [1, 1, 2, 2]
    # Jitter and the length of steps go on as at the end of the first frame.
    assert [int(m.state.step) for m in moments if m.frame == 2] == [8, 9, 10]


@pytest.mark.slow
def test_a_frame_starts_from_the_last_result_moved_along_flow(along_flow, video):
    """With SciPy; the picture starts from the content where flow leads outside."""
    _, moments = along_flow
    wholes = [(m, m.transfer.whole(m.state)) for m in moments]
    last = next(state for m, state in wholes if m.frame == 0 and m.whole)
    start = next(state for m, state in wholes if m.frame == 1)
    motion = flow.read(video / "flow" / "0.flo")
    rows, columns = np.indices((HEIGHT, WIDTH))
    at = np.stack([rows + motion[..., 1], columns + motion[..., 0]])
    limits = np.array([HEIGHT - 0.5, WIDTH - 0.5])[:, None, None]
    known = ((at >= -0.5) & (at <= limits)).all(0)
    assert 0.7 < known.mean() < 0.99

    def moved(x, otherwise):
        channels = [
            scipy.ndimage.map_coordinates(
                x[0, 2:-2, 2:-2, c], at, order=1, mode="nearest"
            )
            for c in range(3)
        ]
        inner = np.where(known[..., None], np.stack(channels, -1), otherwise)
        return np.pad(inner, ((2, 2), (2, 2), (0, 0)), "reflect")[None]

    content = images.to_array(picture(WIDTH, HEIGHT, seed=1))
    for array in (start.canvas, start.best):
        np.testing.assert_allclose(array, moved(last.best, content), atol=1e-2)
    pairs = zip(jax.tree.leaves(start.optimizer), jax.tree.leaves(last.optimizer))
    counted = 0
    for found, before in pairs:
        if found.ndim:
            scale = np.abs(before).max()
            np.testing.assert_allclose(found, moved(before, 0), atol=1e-5 * scale)
            counted += 1
        else:
            assert (before, found) == (10, 8)
    assert counted == 2  # the moments
    assert start.best_loss == np.inf


@pytest.mark.slow
def test_without_flow_a_frame_starts_from_the_last_result(video, network):
    moments = moments_of(transfer_of(video, quick(network)))
    last = next(m.state for m in moments if m.frame == 0 and m.whole)
    start, *_, end = [m.state for m in moments if m.frame == 1]
    np.testing.assert_array_equal(start.canvas, last.best)
    found, before = (
        [x for x in jax.tree.leaves(s.optimizer) if x.ndim] for s in (start, last)
    )
    for one, other in zip(found, before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(end.canvas - start.canvas).max() > 0.1


@pytest.mark.slow
def test_resumed_after_any_step_a_sequence_ends_the_same(along_flow):
    transfer, moments = along_flow
    for resumed in (m for m in moments if m.metrics):
        kept = jax.tree.map(jnp.asarray, resumed.state)
        rest = moments_of(transfer, resumed.step, lambda _, kept=kept: kept)
        assert rest[-1].step == 14
        pairs = zip(jax.tree.leaves(rest[-1].state), jax.tree.leaves(moments[-1].state))
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_what_lbfgs_knows_of_the_last_frame_is_forgotten(video, network):
    layer = {"content_layers": "conv1", "style_layers": "conv1", "scales": 1}
    along = {"flow": str(video / "flow")}
    chosen = quick(network, optimizer="lbfgs", **layer, **along)
    moments = moments_of(transfer_of(video, chosen))
    first, *later = (m.state.optimizer for m in moments if m.metrics is None)
    assert len(later) == 2
    for fresh in later:
        for one, other in zip(*map(jax.tree.leaves, (fresh, first)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert all(np.isfinite(m.state.canvas).all() for m in moments)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="frame_steps=150 should be below steps=150"):
        config.check(experiment.Config(sequence=True, frame_steps=150))
    with pytest.raises(ValueError, match="flow is for frames: give sequence=True"):
        config.check(experiment.Config(flow="flow"))
    config.check(experiment.Config(steps=10))


def test_flow_that_does_not_fit_the_frames_is_refused_in_one_line(
    video, network, tmp_path
):
    def refused(message):
        with pytest.raises((ValueError, OSError), match=message) as refusal:
            transfer_of(video, quick(network, flow=str(tmp_path / "flow")))
        assert "\n" not in str(refusal.value)

    refused("no folder .*flow")
    (tmp_path / "flow").mkdir()
    refused("flow has no file that ends in .flo")
    motion = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    for i in range(3):
        flow.write(tmp_path / f"flow/{i}.flo", motion)
    refused("has 3 .flo files, where 3 frames take 2: one from each frame but")
    (tmp_path / "flow/2.flo").unlink()
    flow.write(tmp_path / "flow/1.flo", motion[:-1])
    refused("1.flo is a flow of 72 x 65 pixels, but frames have 72 x 66")
    content = (video / "flow/1.flo").read_bytes()
    (tmp_path / "flow/1.flo").write_bytes(content[:-4])
    refused("1.flo: 38024 bytes, where a flow of 72 x 66 pixels has 38028")


# Through the launcher.


def command(video, network, *more):
    chosen = vars(quick(network, flow=str(video / "flow"), steps=12, frame_steps=6))
    chosen |= {"content": str(video / "frames"), "sequence": True}
    flags = [
        f"--config.{name}={value}" for name, value in chosen.items() if value != ""
    ]
    return ["--experiment=style", *flags, *more]


@pytest.fixture(scope="module")
def uninterrupted(video, network, tmp_path_factory):
    """The workdir of a whole run, and what it said."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = launcher.launch(*command(video, network, f"--workdir={workdir}"))
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


@pytest.mark.slow
def test_the_launcher_leaves_frames_and_an_animation(uninterrupted, video, network):
    workdir, output = uninterrupted
    for name in ("G.gif", "G", "index.html", "loss.png", "metrics.jsonl"):
        assert f"{workdir / name}\n" in output
    names = [f"{number:06}.png" for number in (1, 2, 3)]
    assert sorted(path.name for path in (workdir / "G").iterdir()) == names
    arrays = [images.to_array(images.read(workdir / "G" / name)) for name in names]
    assert all(array.shape == (HEIGHT, WIDTH, 3) for array in arrays)
    assert all(np.abs(a - b).mean() > 1 for a, b in itertools.pairwise(arrays))
    note = images.read_settings(workdir / "G" / names[1])
    assert (note["frame"], note["frame_steps"]) == (2, 6)
    with Image.open(workdir / "G.gif") as moving:
        assert (moving.n_frames, moving.size) == (3, (WIDTH, HEIGHT))
    assert steps(workdir) == [*range(1, 2 * 12 + 2 * 6 + 1)]
    assert "frame 3 of 3 J=" in output
    assert output.count(": J = ") == 2  # not for each frame


@pytest.mark.slow
def test_killed_and_stopped_a_sequence_ends_bit_identical(
    uninterrupted, video, network, tmp_path
):
    """Killed and stopped after the first frame, in two starts."""
    workdir, whole = tmp_path / "run", uninterrupted[0]
    arguments = command(
        video, network, f"--workdir={workdir}", "--config.checkpoint_every=0"
    )
    for signum, step in ((signal.SIGKILL, 25), (signal.SIGINT, 28)):
        process = start(*arguments)
        signal_at(process, signum, workdir, step)
        said = finish(process, 130 if signum == signal.SIGINT else -signum)
        assert max(steps(workdir)) < 36
        assert not (workdir / "G.gif").exists()
    assert f"rerun with --workdir={workdir} to resume" in said
    assert "Traceback" not in said
    done = launcher.launch(*arguments)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stderr
    for name in ("G/000001.png", "G/000002.png", "G/000003.png"):
        ours, theirs = (np.asarray(images.read(w / name)) for w in (workdir, whole))
        np.testing.assert_array_equal(ours, theirs)
    for name in ("G.gif", "metrics.jsonl", "loss.png"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()
    assert not list(workdir.glob("**/*.partial"))


def test_a_picture_is_no_sequence(video, network, tmp_path):
    one = {"content": str(video / "frames/9.png"), "sequence": True}
    chosen = experiment.Config(**vars(quick(network)) | one)
    with pytest.raises(ValueError, match="single picture: a sequence takes a folder"):
        config.check(chosen)
        experiment.run(chosen, tmp_path)
