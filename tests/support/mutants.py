"""The package with one mistake. The mutants stand in `MUTANTS`, beside the laws that must detect them."""

import importlib
import pathlib
import shutil
import sys
from typing import NamedTuple
from unittest import mock

import gae_jax

PACKAGE = pathlib.Path(gae_jax.__file__).parent


class Mutant(NamedTuple):
    """A mistake: a fragment of a file of the package, which occurs there once, and the fragment in its place."""

    name: str
    file: str
    fragment: str
    instead: str

    def source(self):
        """Returns the text of the file, with the mistake."""
        source = (PACKAGE / self.file).read_text(encoding="utf-8")
        count = source.count(self.fragment)
        assert count == 1, f"{self.name}: {self.fragment!r} must occur once in {self.file}; it occurs {count} times"
        return source.replace(self.fragment, self.instead)


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
