"""Figures: where a mosaic's pictures are, and what the colours of categories mean."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from nstvis import plots


def shown(axes):
    (image,) = axes.get_images()
    return np.asarray(image.get_array())


def test_a_mosaic_has_each_picture_at_its_labels():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 250, (2, 3, 24, 30, 3), np.uint8)
    grey = rng.integers(0, 250, (24, 30), np.uint8)
    rows = [[*pictures[0]], [pictures[1, 0], None, grey]]
    axes = plots.figure(4, 4).subplots()
    plots.mosaic(axes, rows, ["up", "down"], ["left", "middle", "right"])
    page = shown(axes)
    for y, row in zip(axes.get_yticks(), rows, strict=True):
        for x, picture in zip(axes.get_xticks(), row, strict=True):
            top, left = round(y + 0.5) - 12, round(x + 0.5) - 15
            cell = page[top : top + 24, left : left + 30]
            expected = np.uint8(255) if picture is None else picture
            if picture is grey:
                expected = np.stack([grey] * 3, -1)
            np.testing.assert_array_equal(cell, np.broadcast_to(expected, cell.shape))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["up", "down"]


def test_categories_name_the_first_and_the_most_frequent():
    values = np.repeat(np.arange(8), [1, 9, 3, 8, 7, 6, 2, 0])[None]
    names = [f"name {number}" for number in range(8)]
    axes = plots.figure(4, 4).subplots()
    plots.categories(axes, values, names, first=6)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["name 6", "name 1", "name 3", "name 4", "name 5", "others"]
    colors = shown(axes)[0]
    handles = [patch.get_facecolor()[:3] for patch in axes.get_legend().get_patches()]
    for number, color in zip(values[0], colors, strict=True):
        place = legend.index(f"name {number}") if number not in (0, 2) else -1
        np.testing.assert_allclose(color, handles[place])


def test_names_may_have_dollars(tmp_path):
    figure = plots.figure(2, 2)
    figure.subplots().set_title("a$_$")
    plots.save(tmp_path / "page.png", figure)
    assert (tmp_path / "page.png").stat().st_size
    assert not matplotlib.rcParams["text.parse_math"]


def test_numbers_on_a_log_scale_are_plain(tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(plots, "save", lambda _, page: pages.append(page))
    rows = [{"step": step, "J": 10.0**-step} for step in range(4)]
    plots.metrics(tmp_path / "loss.png", rows, ["J"], "log")
    (axes,) = pages[0].axes
    pages[0].canvas.draw()
    labels = [text.get_text() for text in axes.get_yticklabels(which="both")]
    assert {"1", "0.1", "0.01", "0.001"} <= set(labels)
    assert not any("$" in label for label in labels)


def test_a_grids_names_of_several_lines_cover_no_picture():
    red = Image.new("RGB", (50, 40), "red")
    for lines in (1, 4):
        names = ["\n".join([name] * lines) for name in ("first", "second")]
        page = plots.grid([[red, "none"], [red, red]], names, names, red.size)
        assert (np.asarray(page) == (255, 0, 0)).all(-1).sum() == 3 * 50 * 40
        ink = (np.asarray(page) < 200).all(-1)
        above, left = ink[: page.height - 2 * 46], ink[:, : page.width - 2 * 62]
        # Every line of every name is there, and none touches the page's edge.
        for band in (above, left.T):
            assert band.any() and not band[0].any()
        assert above.any(1).sum() > 7 * lines


@pytest.mark.parametrize("length", [5, 40, 90, 400])
def test_a_legend_is_within_its_figure(length):
    figure = plots.figure(8, 5)
    axes = figure.subplots()
    for number in range(7):
        plots.curves(axes, [0, 1], {f"{number}{'m' * length}": [0, number]})
    plots.legend_below(figure, *axes.get_legend_handles_labels())
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert len(figure.legends[0].get_texts()) == 7
    assert axes.get_window_extent().height > 100
