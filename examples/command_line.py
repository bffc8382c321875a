"""How every script here takes options and refuses bad ones: one line on standard error, exit status 2."""

import argparse
import importlib.util
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help shows the defaults, and whose errors are one line."""

    def __init__(self, description: str) -> None:
        """Takes the description that `--help` prints."""
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Refuses the options."""
        refuse(message)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds to each option its default."""


def refuse(message: str) -> NoReturn:
    """Prints one line and exits with status 2."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def require(extra: str, *modules: str) -> None:
    """Refuses to go on without the modules of an extra; call it before importing them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        refuse(f"{', '.join(missing)} not installed; run: pip install -e '.[{extra}]'")
