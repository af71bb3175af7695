"""Sphinx configuration: numpydoc pages under the pydata theme, built without a network and without warnings."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # this checkout, installed or not

import tables

import cuflash

tables.write()
tables.write_kernels()

project = "cuflash"
author = "The cuflash developers"
copyright = "The cuflash developers"
version = release = cuflash.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
]
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's own type lines say more than the annotations
autodoc_preserve_defaults = True  # `xp=np`, as written
numpydoc_show_class_members = False  # autosummary lists them, in templates/autosummary/class.rst
templates_path = ["templates"]
exclude_patterns = ["_build", "templates"]

# `q` in a docstring is code; `cuflash.attention` is a link as well. Names of ours that lead nowhere are warnings,
# and so errors; parameter names and NumPy's types are not ours to resolve.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r"(?!cuflash\.).*"),
    ("py:class", r"(?!cuflash\.).*"),
    ("py:exc", r"(TypeError|ValueError|RuntimeError|NotImplementedError)"),
]

html_theme = "pydata_sphinx_theme"
html_title = f"cuflash {version}"
html_static_path = ["_static"]
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
}
html_show_sourcelink = False
