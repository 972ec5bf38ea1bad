"""Metrics come back as they were written, and rewind to the checkpoint."""

import pytest
from PIL import Image

from nstvis import plots
from nstvis.runs.metrics import Metrics


@pytest.fixture
def open_metrics(tmp_path):
    """Opens a run's metrics, several times if need be."""
    opened = []

    def open_metrics(done):
        opened.append(Metrics(tmp_path, done))
        return opened[-1]

    yield open_metrics
    for metrics in opened:
        metrics._file.close()


def test_metrics_come_back_as_they_were_written(open_metrics):
    metrics = open_metrics(0)
    rows = [{"step": step, "J": 1 / step} for step in (1, 2, 3)]
    for row in rows:
        metrics.write(row)
    metrics.flush()
    # At once, as a kill leaves no time to close the file.
    assert open_metrics(3).read() == rows


def test_metrics_rewind_to_the_step_of_the_checkpoint(open_metrics, tmp_path):
    lines = '{"step": 1, "J": 9.0}\n{"step": 2, "J": 8.0}\n{"step": 3, "J": 7.0}\n{"st'
    (tmp_path / "metrics.jsonl").write_text(lines)
    metrics = open_metrics(2)
    assert [row["step"] for row in metrics.read()] == [1, 2]
    metrics.write({"step": 3, "J": 6.0})
    metrics.flush()
    assert [row["J"] for row in metrics.read()] == [9, 8, 6]
    # From the start anew, nothing of an interrupted run remains.
    assert open_metrics(0).read() == []


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"step": "x"}', '{"step": 1, "J": []}', 9**6 * "["]
)
def test_a_damaged_line_is_named(line, open_metrics, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"^line 2 of .*metrics\.jsonl is damaged"):
        open_metrics(3)


def test_metrics_are_plotted_even_if_there_are_none(open_metrics, tmp_path):
    metrics = open_metrics(0)
    plots.metrics(tmp_path / "none.png", metrics.read(), ["J"], "log")
    metrics.write({"step": 1, "J": 2.0})
    metrics.write({"step": 2, "J": 1.0})
    metrics.flush()
    plots.metrics(tmp_path / "some.png", metrics.read(), ["J"], "log")
    with Image.open(tmp_path / "none.png") as a, Image.open(tmp_path / "some.png") as b:
        assert a.size == b.size
        assert a.tobytes() != b.tobytes()
