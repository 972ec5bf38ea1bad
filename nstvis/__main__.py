"""Does what launch.py does, from any folder: `python -m nstvis --experiment=style`."""

import sys

from nstvis.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
