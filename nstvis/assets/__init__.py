"""Shipped files: trained weights and two demo pictures.

`demo_content.jpg` and `demo_style.jpg` are drawn by `make_demo.py` in this folder.
"""

import pathlib

FOLDER = pathlib.Path(__file__).parent
