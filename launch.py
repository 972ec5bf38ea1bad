"""Runs an experiment: `python launch.py --experiment=style --config.size=512`."""

from nstvis.__main__ import start

if __name__ == "__main__":
    start()
