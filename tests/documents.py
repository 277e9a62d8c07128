"""The fenced blocks of the documents, and the commands in them.

A block is checked as the HTML comment directly above it says:

    none                   run as written, with small numbers
    <!-- test: parse -->   flags and config fields are checked, nothing is started
    <!-- test: make -->    targets of the Makefile
    <!-- test: install --> pip: the extras are those of pyproject.toml
    <!-- test: skip ... -->  neither; the comment says why
"""

import dataclasses
import re
import shlex
from pathlib import Path

from helpers import ROOT

WAYS = ("run", "parse", "make", "install", "skip")
_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<way>\w+)[^\n]*-->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block; `way` is how it is tested."""

    file: Path
    line: int
    way: str
    language: str
    text: str

    def __str__(self):
        return f"{self.file.name}:{self.line}"

    def commands(self):
        """Return the words of each command, whose lines may end in a backslash."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(file):
    """Return the blocks of a Markdown file, in its order."""
    text = file.read_text(encoding="utf-8")
    return [
        Block(file, text.count("\n", 0, match.start()) + 1, match["way"] or "run",
              match["language"], match["text"])
        for match in _BLOCK.finditer(text)
    ]  # fmt: skip


def flags_of(module):
    """Return the names of the flags that the module of a command defines, from its source."""
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    names = set(re.findall(r'flags\.DEFINE_\w+\((?:\s*_\w+\()?\s*"(\w+)"', source))
    return names | ({"config"} if "overrides.define(" in source else set())
