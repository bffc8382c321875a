"""Options of the scripts under examples/: a bad option is one line on standard error and exit status 2."""

import argparse
import importlib.util
import math
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
seed_number = number(int, "a whole number from 0 to 2^32 - 1", lambda x: 0 <= x < 2**32)
positive = number(float, "a positive number", lambda x: 0 < x < math.inf)
fraction = number(float, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """Returns the `type` of an option that takes one of some words."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(choices)}; got {text}")
        return text

    return read


def refuse(message: str) -> NoReturn:
    """Prints one line and exits with status 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def require(extra: str, *modules: str) -> None:
    """Refuses to go on without the modules of an extra; call it before importing them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        refuse(f"{', '.join(missing)} not installed; run: pip install -e '.[{extra}]'")


def refuse_missing(error: ModuleNotFoundError, extra: str) -> NoReturn:
    """Says how to install what a script could not import."""
    refuse(f"{error.name} is not installed; run: pip install -e '.[{extra}]'")
