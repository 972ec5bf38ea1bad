"""Runs an experiment: `python launch.py --experiment=style --config.size=512`."""

import sys

from nstvis.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
