"""Draws the two demo pictures from nothing but noise, geometry and brush strokes.

Both are deterministic and use no third-party material. To write `demo_content.jpg` and
`demo_style.jpg` again, run `python -m nstvis.assets.make_demo`.
"""

from pathlib import Path

from nstvis.assets._landscape import content_picture
from nstvis.assets._noise import SCALE
from nstvis.assets._painting import style_picture


def main():
    """Writes both pictures, reduced to their final size, next to this file."""
    for name, picture in ("content", content_picture), ("style", style_picture):
        path = Path(__file__).with_name(f"demo_{name}.jpg")
        picture().reduce(SCALE).save(path, quality=92, optimize=True)


if __name__ == "__main__":
    main()
