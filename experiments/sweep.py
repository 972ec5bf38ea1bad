r"""Sweeps settings of a style transfer, and shows the pictures in rows and columns.

    python launch.py --experiment=sweep
    python launch.py --experiment=sweep --config.rows=beta:0.5,1.5,5 \
        --config.columns=content_layers:conv1_2,conv2_2,conv3_2,conv4_1
    python launch.py --experiment=sweep --config.content=photo.jpg \
        --config.rows=style:a.jpg,b.jpg --config.columns= --config.size=384
    python launch.py --experiment=sweep --config.rows= \
        --config.columns="default;beta=9;style_loss=gram;start=content start_noise=0.3"

Gatys, Ecker & Bethge 2015 (arXiv:1508.06576), Figure 3: the style is matched in more and
more layers from the top row to the bottom, and the content weighs more and more from left
to right, here against `beta` = 3. Rows and columns may be any settings of
`--experiment=style`, or other pictures; the pictures of the last command have settings of
their own. Leaves `sheet.png`, `cells.csv` with each picture's J and its terms, and the
pictures in `cells/`. A run that is stopped or killed repeats only the pictures that were
not finished.

The first command takes about five minutes on two cores: 16 pictures of 192 x 144 pixels,
of which those in a row share their programs.
"""

import dataclasses
import pathlib

from nstvis.runs.config import bounded
from nstvis.synthesis import style_settings, sweep

LAYERS = ("conv1_1", "conv2_1", "conv3_1", "conv4_1")
ONE_BY_ONE = ";".join(",".join(LAYERS[:count]) for count in range(1, len(LAYERS) + 1))


@dataclasses.dataclass(kw_only=True)
class Config(sweep.Painting):
    """What changes from row to row, and from column to column."""

    # What the rows change: FIELD:VALUES, separated by commas, or by semicolons if there
    # is one; or settings that change apart, default;beta=9;gamma=0 style_scale=0.5;
    # nothing if empty.
    rows: str = f"style_layers:{ONE_BY_ONE}"
    # What the columns change, likewise.
    columns: str = "alpha:0.01,0.1,1,10"
    size: int = bounded(192, least=style_settings.SHORTEST_SIDE, most=16384)

    def check(self) -> None:
        """Raises a ValueError if a row or a column is not one of settings."""
        sweep.check(self, *self.axes())

    def axes(self) -> tuple[sweep.Axis, sweep.Axis]:
        """Returns the rows and the columns."""
        return (
            sweep.parse_axis("rows", self.rows),
            sweep.parse_axis("columns", self.columns),
        )


PRESETS = {name: Config(**x) for name, x in style_settings.PRESETS.items()}


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Paints the pictures that are missing, then writes the sheet and the table."""
    return sweep.run(config, *config.axes(), workdir)
