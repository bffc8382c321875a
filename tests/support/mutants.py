"""The package with one mistake. The mistakes stand beside the laws that must detect them."""

import importlib
import pathlib
import shutil
import sys
from unittest import mock

import gae_jax

PACKAGE = pathlib.Path(gae_jax.__file__).parent


def load(file, fragment, instead, directory):
    """Imports a copy of the package in which one fragment is changed; the package itself stays in `sys.modules`."""
    copy = pathlib.Path(directory) / "gae_jax"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / file).read_text(encoding="utf-8")
    assert source.count(fragment) == 1, f"{fragment!r} must occur once in {file}"
    (copy / file).write_text(source.replace(fragment, instead), encoding="utf-8")

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
