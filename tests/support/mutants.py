"""The package with one line changed: each mutant of `mutants.txt` makes one mistake, and some laws must detect it."""

import importlib
import pathlib
import re
import shutil
import sys
from typing import NamedTuple
from unittest import mock

import gae_jax


class Mutant(NamedTuple):
    """A line of a file of the package, the line in its place, and the names of the laws that must fail."""

    name: str
    file: str
    caught_by: tuple[str, ...]
    line: str
    instead: str


def read_mutants():
    """Returns the mutants of each section of `mutants.txt`."""
    text = pathlib.Path(__file__).with_name("mutants.txt").read_text(encoding="utf-8")
    _, *sections = re.split(r"^=+ (.*)$", text, flags=re.MULTILINE)
    entry = re.compile(r"^(\w+): (\S+): (.*)\n- (.*)\n\+ (.*)$", re.MULTILINE)
    return {
        title: [Mutant(name, file, tuple(laws.split(", ")), *lines) for name, file, laws, *lines in entry.findall(body)]
        for title, body in zip(sections[::2], sections[1::2], strict=True)
    }


BY_SECTION = read_mutants()
MUTANTS = BY_SECTION["gae"]


def load(mutant, directory):
    """Imports the mutant from a copy of the package in `directory`; the package itself stays in `sys.modules`."""
    package = pathlib.Path(directory) / "gae_jax"
    shutil.copytree(pathlib.Path(gae_jax.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / mutant.file
    file.write_text(mutated(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")

    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "gae_jax"}
    sys.path.insert(0, str(directory))
    try:
        with mock.patch("jax.export.register_namedtuple_serialization"):  # the package has registered the name
            return importlib.import_module("gae_jax")
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name.split(".")[0] == "gae_jax"]:
            del sys.modules[name]
        sys.modules.update(real)


def mutated(source, mutant):
    """Returns the source with the line replaced."""
    lines = source.splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if line.strip() == mutant.line]
    assert len(found) == 1, f"{mutant.name}: {len(found)} lines of {mutant.file} are {mutant.line!r}"
    [i] = found
    lines[i] = lines[i].replace(mutant.line, mutant.instead)
    return "".join(lines)
