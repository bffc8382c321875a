"""Options of the scripts under examples/: a bad option is one line on standard error and exit status 2."""

import argparse
import importlib.util
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help shows the defaults, and whose errors are one line."""

    def __init__(self, description: str) -> None:
        """Takes the description that `--help` prints."""
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Refuses the options."""
        refuse(message.removeprefix("argument "))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds to each option its default, where it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def number(kind: Callable[[str], Any], wanted: str, valid: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Returns the `type` of an option that takes a number.

    Args:
      kind: int or float.
      wanted: what the error message asks for.
      valid: tells a valid number from others.
    """

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not valid(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}; got {text}")
        return value

    return read


count = number(int, "a whole number, at least 1", lambda x: x >= 1)
index = number(int, "a whole number, at least 0", lambda x: x >= 0)
fraction = number(float, "a number from 0 to 1", lambda x: 0 <= x <= 1)
positive = number(float, "a positive number", lambda x: 0 < x < math.inf)


def file_to_write(*suffixes: str) -> Callable[[str], pathlib.Path]:
    """Returns the `type` of an option that names a file to write; the name ends in one of the suffixes, if any."""

    def read(text: str) -> pathlib.Path:
        path = pathlib.Path(text)
        if suffixes and path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"the name must end in {' or '.join(suffixes)}; got {text!r}")
        try:  # only an attempt finds all that prevents it, such as a name that is too long
            existed = path.exists()
            path.open("ab").close()
            if not existed:
                path.unlink()
        except OSError as error:
            raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from error
        return path

    return read


def refuse(message: str) -> NoReturn:
    """Prints one line and exits with status 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def require(extra: str, *modules: str) -> None:
    """Refuses to go on without the modules of an extra; call it before importing them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        target = f"'.[{extra}]'" if extra else "."
        refuse(f"{', '.join(missing)} not installed; run: pip install -e {target}")


def require_memory(needed: int, what: str) -> None:
    """Refuses what needs more bytes than this machine has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > memory:
        refuse(f"{what} needs {needed >> 30:,} GiB of memory; this machine has {memory >> 30:,} GiB")


require("", "gae_jax", "jax", "chex")  # each script imports this module before it imports any of them
