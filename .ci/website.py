"""Makes the web site from the docstrings and the pages: `python .ci/website.py DIRECTORY`.

It needs the extra `docs`. README.md is the index. Beside it are the API, the pages and the notebook of examples/, the
page of the tests, and all files that they link to. A broken link is an error. Browsers load MathJax from the network to
show equations, and nothing else.

pdoc alone leaves out names that a package imports from its private modules, shows equations as code, and writes types
in full. This API page has the public names, equations for MathJax, and the short names of types.
"""

import html
import inspect
import itertools
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any

import jax
import jinja2
import pdoc
import pygments
from jax.typing import ArrayLike
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_by_name
from pygments.util import ClassNotFound

import gae_jax
import gae_jax.testing

# The API, by pdoc.

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
    upright = WORD.sub(lambda word: r"\mathrm{" + word[0].replace("_", r"\_") + "}", lines)
    rows = [line.strip().replace("=", "&=", 1) for line in upright.splitlines()]  # aligned at the first equals sign
    return "<div>" + html.escape(r"\[\begin{aligned}" + r" \\ ".join(rows) + r"\end{aligned}\]") + "</div>\n"


def write_api(directory: pathlib.Path) -> None:
    """Writes a page for each public module."""
    for package in (gae_jax, gae_jax.testing):
        package.__all__ = [name for name in vars(package) if not name.startswith("_")]
    to_markdown = pdoc.render.env.filters["to_markdown"]

    @jinja2.pass_context
    def to_markdown_with_equations(context: jinja2.runtime.Context, docstring: str) -> str:
        return to_markdown(context, with_equations(docstring))

    pdoc.render.env.filters["to_markdown"] = to_markdown_with_equations
    inspect.formatannotation = pdoc.doc.formatannotation = with_short_names
    pdoc.pdoc("gae_jax", r"!.*\._", output_directory=directory)


# The pages.

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ["README.md", "examples/*.md", "examples/*.ipynb", "tests/README.md"]

TEMPLATES = {  # on top of pdoc's
    "navigation.html.jinja2": """<h2>Pages</h2><ul>
        {% for url, title in navigation %}<li><a href="{{ root }}{{ url }}">{{ title }}</a></li>{% endfor %}</ul>""",
    "module.html.jinja2": """{% extends "default/module.html.jinja2" %}
        {% block module_list_link %}
        {% set root = "../" * module.modulename.count(".") %}{% include "navigation.html.jinja2" %}
        {% endblock %}""",
    "page.html.jinja2": """{% extends "frame.html.jinja2" %}
        {% block title %}{{ title }}{% endblock %}
        {% block nav %}{% include "navigation.html.jinja2" %}{% if sections %}<h2>Contents</h2>{% endif %}<ul>
        {% for id, text, tag in sections %}<li class="{{ tag }}"><a href="#{{ id }}">{{ text }}</a></li>{% endfor %}
        </ul>{% endblock %}
        {% block content %}<main class="pdoc">{{ content | safe }}</main>{% endblock %}""",
    "custom.css": """
        :root { --sidebar-width: clamp(12rem, 24vw, 20rem) }
        nav h2 { font-size: 1.5rem }
        nav .h3 { margin-left: 1rem }
        main.pdoc { width: calc(68rem + var(--sidebar-width)); max-width: 100% }
        main img { max-width: 100% }
        main table { display: block; overflow-x: auto; margin-bottom: 1rem }
        main :is(td, th) { border: 1px solid var(--accent2); padding: .3rem .6rem }
        main td:has(code) { min-width: 13.5rem }
        main td code { overflow-wrap: anywhere }""",
}


def highlighted(code: str, language: str, _: str) -> str:
    """Returns a block of code in HTML, with the classes of pdoc's colours."""
    try:
        lexer = get_lexer_by_name("pycon" if code.startswith(">>> ") else language)
    except ClassNotFound:
        lexer = TextLexer()
    return f'<pre class="pdoc-code">{pygments.highlight(code, lexer, HtmlFormatter(nowrap=True))}</pre>'


def for_mathjax(equation: str, options: dict[str, Any]) -> str:
    """Returns an equation of the notebook in MathJax's delimiters."""
    return html.escape(rf"\[{equation}\]" if options["display_mode"] else rf"\({equation}\)")


MARKDOWN = MarkdownIt("commonmark", {"highlight": highlighted}).enable("table")
MARKDOWN.use(dollarmath_plugin, renderer=for_mathjax).use(anchors_plugin, max_level=6)  # the anchors that GitHub gives


def fenced(code: str, language: str = "") -> str:
    """Returns a block of code in Markdown."""
    return f"`````{language}\n{code.rstrip()}\n`````"


def cells_in_markdown(notebook: str) -> Iterator[str]:
    """Yields text, code and results."""
    for cell in json.loads(notebook)["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else fenced(source, "python")
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                yield fenced("".join(output["text"]))
            else:
                yield f"![](data:image/png;base64,{output['data']['image/png'].strip()})"


def in_markdown(path: pathlib.PurePath) -> str:
    """Returns the text of a page. What is neither Markdown nor a notebook is shown as code."""
    text = (ROOT / path).read_text()
    if path.suffix == ".ipynb":
        return "\n\n".join(cells_in_markdown(text))
    return text if path.suffix == ".md" else f"# `{path}`\n{fenced(text, path.suffix[1:])}"


def title_of(path: pathlib.PurePath) -> str:
    """Returns the first heading of a page."""
    heading = re.search("^# (.*)", in_markdown(path), re.M)
    return heading[1].replace("`", "") if heading else str(path)


def url_of(path: pathlib.PurePath) -> str:
    """Returns where a file of the project is on the site, which has no hidden directories."""
    if path.suffix != ".png":
        name = "index" if path.name == "README.md" else path.name.removesuffix(".md").removesuffix(".ipynb")
        path = path.with_name(f"{name}.html")
    return str(path).removeprefix(".")


def write_page(path: pathlib.PurePath, directory: pathlib.Path) -> set[pathlib.PurePath]:
    """Writes the page of a file, and returns the files that it links to."""
    url, tokens = url_of(path), MARKDOWN.parse(in_markdown(path))
    linked = set()
    for token in itertools.chain.from_iterable(token.children or [] for token in tokens):
        for name in {"href", "src"} & token.attrs.keys():
            link = urllib.parse.urlsplit(token.attrs[name])
            if link.path and not link.scheme:
                file = pathlib.PurePath(os.path.normpath(path.parent / link.path))
                linked.add(file)
                token.attrs[name] = link._replace(path=os.path.relpath(url_of(file), f"{url}/..")).geturl()
    content = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    page = pdoc.render.env.get_template("page.html.jinja2").render(
        title=title_of(path),
        root="../" * url.count("/"),
        sections=[
            (heading.attrs["id"], text.content.replace("`", ""), heading.tag)
            for heading, text in itertools.pairwise(tokens)
            if heading.type == "heading_open" and heading.tag in ("h2", "h3")
        ],
        content=content,
        math='class="math' in content,
    )
    (directory / url).parent.mkdir(parents=True, exist_ok=True)
    (directory / url).write_text(page)
    return linked


def broken_links(directory: pathlib.Path) -> Iterator[str]:
    """Yields the links to files and anchors that the site does not have."""
    script = re.compile("<script.*?</script>", re.S)
    pages = {path: script.sub("", path.read_text()) for path in directory.rglob("*.html")}
    anchors = {path: {"", *re.findall(' id="([^"]*)"', page)} for path, page in pages.items()}
    for path, page in pages.items():
        for text in sorted(set(re.findall(' (?:href|src)="([^"]*)"', page))):
            link = urllib.parse.urlsplit(urllib.parse.unquote(html.unescape(text)))
            file = pathlib.Path(os.path.normpath(path.parent / link.path)) if link.path else path
            if not (link.scheme or (file.is_file() and link.fragment in anchors.get(file, {""}))):
                yield f"broken link in {path.relative_to(directory)}: {text}"


def write_site(directory: pathlib.Path) -> None:
    """Writes the API, then the pages and what they link to."""
    files = [path.relative_to(ROOT) for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    pdoc.render.configure(docformat="google", math=True)
    pdoc.render.env.loader = jinja2.ChoiceLoader([jinja2.DictLoader(TEMPLATES), pdoc.render.env.loader])
    pdoc.render.env.globals["navigation"] = [("index.html", "README"), ("gae_jax.html", "API")]
    pdoc.render.env.globals["navigation"] += [(url_of(path), title_of(path)) for path in files[1:]]
    write_api(directory)
    for path in files:  # it grows
        if not (ROOT / path).is_file():
            continue  # the link is reported as broken
        if path.suffix == ".png":
            shutil.copy(ROOT / path, directory / path)
        else:
            files += sorted(write_page(path, directory) - set(files))


def main() -> None:
    """Writes the site, if no link is broken."""
    with tempfile.TemporaryDirectory() as scratch:
        write_site(pathlib.Path(scratch))
        if broken := list(broken_links(pathlib.Path(scratch))):
            raise SystemExit("\n".join(broken))
        shutil.copytree(scratch, sys.argv[1], dirs_exist_ok=True)
    print(f"wrote {pathlib.Path(sys.argv[1]) / 'index.html'}")


if __name__ == "__main__":
    main()
