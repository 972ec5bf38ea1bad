"""Fuzzing: hostile and damaged input of every kind ends in success or in one line.

    python -m tests.fuzz --minutes=10 --seed=1

Each module but `watched` and `mutations` is a kind of input, with a function

    def case(random: random.Random, folder: pathlib.Path) -> Callable[[], object]

that writes one hostile input into an empty folder and returns what reads it. Reading may
raise a ValueError or an OSError of one line, within 10 s and 1 GB. `kills` stops runs of
experiments at random moments instead, and compares what they end with.
"""
