"""Sphinx: guides in Markdown, and an API reference generated from the docstrings of the installed package."""

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
