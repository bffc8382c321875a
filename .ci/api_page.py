"""Makes the API page from the docstrings, with rendered equations: `python .ci/api_page.py DIRECTORY`.

It needs the extra `docs`. pdoc alone leaves out names that a package imports from its private modules, shows equations
as code, and writes types in full. This page has the public names, equations for MathJax, and the short names of types.
"""

import html
import inspect
import pathlib
import re
import sys
import types
from typing import Any

import jax
import jinja2
import pdoc
from jax.typing import ArrayLike

import gae_jax
import gae_jax.testing

EQUATIONS = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}(?!>>>).*(?:\n|\Z))+(?=\n|\Z)")  # an indented paragraph
WORD = re.compile(r"[A-Za-z]{2,}(?:_[a-z]{2,})*")  # min, clip_rho; not V(s_t)

formatted = inspect.formatannotation
SHORT_NAMES = {
    formatted(ArrayLike | None): "ArrayLike | None",
    formatted(ArrayLike): "ArrayLike",
    formatted(jax.Array): "jax.Array",
}


def with_short_names(annotation: Any, *args: Any, **options: Any) -> str:
    """Returns the text of a type, with the names above in the place of their definitions."""
    text = formatted(annotation, *args, **options)
    for definition, name in SHORT_NAMES.items():
        text = text.replace(definition, name)
    return text


def with_equations(docstring: str) -> str:
    """Replaces each indented paragraph by one displayed equation a line."""
    return EQUATIONS.sub(lambda lines: displayed(lines[0]), docstring)


def displayed(lines: str) -> str:
    """Returns equations in MathJax's syntax, to which the docstrings keep: Greek letters, subscripts, braces."""
    if re.search(r"[_^]\(", lines):
        raise SystemExit(f"a subscript or superscript of several characters stands in braces, s_{{t+1}}; got\n{lines}")
    rows = [aligned(WORD.sub(upright, line.strip())) for line in lines.splitlines()]
    return "<div>" + html.escape(r"\[\begin{aligned}" + r" \\ ".join(rows) + r"\end{aligned}\]") + "</div>\n"


def aligned(equation: str) -> str:
    """Marks the first equals sign, where rows are aligned."""
    return equation.replace("=", "&=", 1)


def upright(word: re.Match[str]) -> str:
    """Returns a word that is set upright, as one name."""
    return r"\mathrm{" + word[0].replace("_", r"\_") + "}"


def public_names(package: types.ModuleType) -> list[str]:
    """What the package exports, and its public modules."""
    return [name for name in vars(package) if not name.startswith("_")]


def main() -> None:
    """Writes the pages."""
    for package in (gae_jax, gae_jax.testing):
        package.__all__ = public_names(package)
    to_markdown = pdoc.render.env.filters["to_markdown"]

    @jinja2.pass_context
    def to_markdown_with_equations(context: jinja2.runtime.Context, docstring: str) -> str:
        return to_markdown(context, with_equations(docstring))

    pdoc.render.env.filters["to_markdown"] = to_markdown_with_equations
    inspect.formatannotation = pdoc.doc.formatannotation = with_short_names
    pdoc.render.configure(docformat="google", math=True)
    directory = pathlib.Path(sys.argv[1])
    pdoc.pdoc("gae_jax", r"!.*\._", output_directory=directory)
    print(f"wrote {directory / 'gae_jax.html'}")


if __name__ == "__main__":
    main()
