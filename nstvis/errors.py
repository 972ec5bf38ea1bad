"""The one sentence that a wrong name gets."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Says that there is no `name`, which `kind` comes nearest, and what exists."""
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"no {kind} {name!r}: {hint}there are {', '.join(known)}"
