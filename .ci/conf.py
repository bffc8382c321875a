"""The web site, by Sphinx: `.ci/run docs` copies README.md and the other pages into one folder, and builds it there."""

import re

from docutils import nodes
from latex2mathml.converter import convert

project = html_title = "gae_jax"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_copy_source = html_show_copyright = False
html_math_renderer = "mathml"  # browsers show it without a script from the network
default_role = "py:obj"  # in docstrings, `gae` is a link
autodoc_typehints = "none"  # the docstrings say the shapes
napoleon_use_ivar = True  # attributes as a list
toc_object_entries_show_parents = "hide"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 6  # the anchors that GitHub gives
nb_execution_mode = "off"  # the notebook is stored with its results
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

NAVIGATION = """
```{toctree}
:hidden:
:glob:
api
examples/guides/*
examples/notebook/gae_explained
examples/README
tests/README
ci/versions
github/CONTRIBUTING
github/CHANGELOG
```
"""


def adapt_page(app, page, text):
    """Adds the navigation to README.md, and removes the dot of hidden folders from links."""
    text[0] = re.sub(r"(\]\([^)\s]*?)\.(ci|github)/", r"\1\2/", text[0]) + (NAVIGATION if page == root_doc else "")


def adapt_docstring(app, what, name, obj, options, lines):
    """Marks indented equations as text, and escapes what reStructuredText does not take as text: `lambda_`, |V|."""
    paragraphs = "\n".join(lines).split("\n\n")
    for i, text in enumerate(paragraphs):
        if re.match(r" {4}\S", text):
            paragraphs[i] = f".. code-block:: none\n\n{text}"
        elif not text.startswith(">>>"):
            text = re.sub(r"(?<![`\w])lambda_(?![`\w])", r"lambda\\_", text)
            paragraphs[i] = re.sub(r"\|(?=\w)", r"\\|", text)
    lines[:] = "\n\n".join(paragraphs).split("\n")


def write_equation(translator, node):
    """Writes an equation of the notebook."""
    translator.body.append(convert(node.astext(), display="block" if isinstance(node, nodes.math_block) else "inline"))
    raise nodes.SkipNode


def setup(app):
    """Registers the functions above."""
    app.add_html_math_renderer("mathml", (write_equation, None), (write_equation, None))
    app.connect("source-read", adapt_page)
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)  # before napoleon
