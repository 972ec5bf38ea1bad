"""`python -m nstvis --experiment=style`, from any folder, does what launch.py does."""

import sys

from nstvis.launcher import main

sys.exit(main(sys.argv))
