"""The code and the tables of the pages, as they are printed there."""

import itertools
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHON = r"^```python\n(.*?)^```$"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """All Python blocks."""
    return re.findall(PYTHON, read(page), re.M | re.S)


def imports(page: str) -> dict[str, Any]:
    """The names that the page's block of imports defines; the recipes may use no others."""
    (block,) = [code for code in blocks(page) if code.startswith("import ")]
    return run(block, {})


def recipes(page: str) -> dict[str, str]:
    """The Python block below each `###` heading; every such heading has one block."""
    found = {}
    for section in re.split(r"^### ", read(page), flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        assert heading not in found, f"two headings of one name: {heading}"
        (found[heading],) = re.findall(PYTHON, body.partition("\n## ")[0], re.M | re.S)
    return found


def table(page: str, head: str) -> list[list[str]]:
    """The cells of the first table with this head line, without the head and the line below it."""
    _, found, rest = read(page).partition(f"{head}\n")
    assert found, f"{page} has no table '{head}'"
    body = itertools.takewhile(lambda line: line.startswith("|"), rest.splitlines()[1:])
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in body]


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names after the code has run, with `names` known to it."""
    scope = dict(names)
    exec(code, scope)
    return scope
