"""Shipped files: trained weights and two demo pictures.

`demo_content.jpg` and `demo_style.jpg` are drawn by `make_demo.py` in this folder.
"""

import pathlib

FOLDER = pathlib.Path(__file__).parent


def picture(path: str, kind: str) -> pathlib.Path:
    """The path of a picture, or if it is `demo`, of our own: `content` or `style`."""
    return FOLDER / f"demo_{kind}.jpg" if path == "demo" else pathlib.Path(path)
