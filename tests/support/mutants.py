"""The package with one mistake: each mutant of `mutants.txt` replaces one fragment, and some laws must detect it."""

import importlib
import pathlib
import re
import shutil
import sys
from typing import NamedTuple
from unittest import mock

import gae_jax

PACKAGE = pathlib.Path(gae_jax.__file__).parent


class Mutant(NamedTuple):
    """A file of the package, the laws that must fail, a fragment of the file, and the fragment in its place."""

    name: str
    file: str
    caught_by: tuple[str, ...]
    fragment: str
    instead: str

    def source(self):
        """Returns the text of the file, with the mistake."""
        source = (PACKAGE / self.file).read_text(encoding="utf-8")
        count = source.count(self.fragment)
        assert count == 1, f"{self.name}: {self.fragment!r} must occur once in {self.file}; it occurs {count} times"
        return source.replace(self.fragment, self.instead)


def read_mutants():
    """Returns the mutants of each section of `mutants.txt`."""
    text = pathlib.Path(__file__).with_name("mutants.txt").read_text(encoding="utf-8")
    _, *sections = re.split(r"^=+ (.*)$", text, flags=re.MULTILINE)
    entry = re.compile(r"^(\w+): (\S+): (.*)\n- (.*)\n\+ (.*)$", re.MULTILINE)
    return {
        title: [Mutant(name, file, tuple(laws.split(", ")), *texts) for name, file, laws, *texts in entry.findall(body)]
        for title, body in zip(sections[::2], sections[1::2], strict=True)
    }


BY_SECTION = read_mutants()
MUTANTS = BY_SECTION["gae"]


def load(mutant, directory):
    """Imports the mutant from a copy of the package in `directory`; the package itself stays in `sys.modules`."""
    copy = pathlib.Path(directory) / "gae_jax"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / mutant.file).write_text(mutant.source(), encoding="utf-8")

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
