"""Flags of every experiment, parsed and checked, and workdirs claimed."""

import dataclasses
import functools

import absl.flags

from nstvis import launcher
from nstvis.runs import registry

_NUMBERS = ["-1", "0", "1", "2", "7", "1.5", "1e400", "nan", "inf", "-0.0", "", "abc"]
_NUMBERS += [str(2**31), str(2**63), "9" * 5000, "1e-320", "0x10", "1_0", " 1", "٣"]
_TEXTS = ["", ",", "a,b", "a,,b", "conv1", "conv1:0", "conv1:-1", "conv9:1", "1,2,3"]
_TEXTS += ["random", "bundled", "/dev/null", "/", ".", "..", "~", "folder:", "folder:~"]
_TEXTS += ["folder:/nowhere", "x://y", "gs:", "x.png", "../x.png", "x" * 5000, "\n"]
_TEXTS += ["\x1b[2J", "\udcff", "é", "train[:0]", "train[", "1:2:3", "0,0,0,0", "-1,-1"]
_TEXTS += ["vgg19", "alexnet", "0:0", ":", "=", "primitives", "demo", "Infinity", "1e9"]


@functools.cache
def _experiments():
    launcher._run = lambda *_: 0  # all but the work itself
    launcher.devices.connect = lambda: None  # at the first call alone
    folder = launcher.experiments()
    return {
        name: registry.find("experiment", name, folder)
        for name in registry.names(folder)
    }


def case(random, folder):
    name = random.choice(list(_experiments()))
    experiment = _experiments()[name]
    fields = dataclasses.fields(experiment.Config)
    argv = ["launch.py", f"--experiment={name}", f"--workdir={folder / 'run'}"]
    for field in random.sample(fields, random.randint(1, min(4, len(fields)))):
        odd = _TEXTS if field.type is str and random.random() < 0.9 else _NUMBERS
        choices = field.metadata["bounds"].choices if "bounds" in field.metadata else ()
        value = random.choice([*odd, *map(str, choices)])
        argv.append(f"--config.{field.name}={value}")
    if random.random() < 0.1:
        presets = [*getattr(experiment, "PRESETS", ()), "nothing"]
        argv.insert(1, f"--config={random.choice(presets)}")
    if random.random() < 0.05:
        argv.append(
            random.choice(["--help", "--config.x=1", "x", "--y", "--config.", "-"])
        )
    (folder / "argv.txt").write_text("\n".join(map(ascii, argv)))
    return lambda: _launch(argv)


def _launch(argv):
    try:
        launcher._launch(argv)
    except launcher.EXPECTED as error:
        known = (ValueError, OSError, absl.flags.Error)
        assert isinstance(error, known), repr(error)
        raise ValueError(launcher.line_of(error)) from error
