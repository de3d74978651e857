"""Sphinx: guides in Markdown, and an API reference generated from the docstrings of the installed package."""

import re
from importlib.metadata import version as installed_version

project = "speechgraft"
author = copyright = "the speechgraft authors"
version = release = installed_version("speechgraft")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"speechgraft {release}"

myst_heading_anchors = 3  # links to headings, as code hosts make them

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Methods that only override keep their text where it was written: Transformers' is Markdown, and on its own site.
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"  # `name` in a docstring is code, as in Markdown


def convert_fences(app, what, name, obj, options, lines):
    """Docstrings show code in Markdown fences, as those of Transformers do; turn these into what Sphinx reads."""
    converted, inside = [], False
    for line in lines:
        fence = re.fullmatch(r"(\s*)```(\w*)\s*", line)
        if fence:
            inside = not inside
            converted += [f"{fence[1]}.. code-block:: {fence[2] or 'text'}", ""] if inside else [""]
        else:
            converted.append(f"   {line}" if inside and line else line)
    lines[:] = converted


def setup(app):
    app.connect("autodoc-process-docstring", convert_fences, priority=400)  # before napoleon's, at 500
