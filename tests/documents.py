"""What README and docs/ tell a reader to type: commands, files and Python."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """The contents of all fenced blocks of a language."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for page in PAGES for block in fenced.findall(page.read_text())]


def files():
    """The files that a reader is told to write, by name."""
    named = re.compile(r"`(\w+\.py)`:\n+```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return dict(pair for page in PAGES for pair in named.findall(page.read_text()))


def commands():
    """The flags of every command of ours, in words: typed, inline or in YAML."""
    found = []
    for page in PAGES:
        text = re.sub(r" *\\\n +", " ", page.read_text())
        typed = re.findall(r"python (?:launch\.py|-m nstvis)( --[^`\n]*)", text)
        lines = [line.partition(" && ")[0] for line in typed]
        found += [shlex.split(line, comments=True) for line in lines]
        for items in re.findall(r" command:\n((?: +- .*\n)+)", text):
            python, program, *flags = re.findall(r"- (.*)\n", items)
            assert (python, program) == ("python", "launch.py")
            found.append(flags)
    return {shlex.join(words): words for words in found}


def shell():
    """All that is typed at a shell: fenced blocks, and indented ones of commands."""
    text = "".join(f"\n{page.read_text()}" for page in PAGES)
    indented = re.findall(r"\n(?:```)?\n((?: {4}.*\n)+)", text)
    typed = [x for x in indented if re.match(r" +(python|pip|for|bash|git) ", x)]
    return blocks("sh") + typed


def programs():
    """All that is run by Python: `launch.py`, `-m pytest`, ..."""
    text = "".join(page.read_text() for page in PAGES)
    return set(re.findall(r'\bpython "?(-m \w[\w.]*|[\w/$]+\.py)', text))
