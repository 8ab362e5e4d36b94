"""Sphinx configuration: ``make docs`` builds docs/_build/html, and every warning is an error."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

from nas_transfer import __version__  # noqa: E402  after the path is set

project = "nas_transfer"
author = "the nas_transfer authors"
project_copyright = "the nas_transfer authors, Apache-2.0"
version = release = __version__

extensions = [
    "myst_nb",  # Markdown pages and executed notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "config_reference",  # these three write pages from the code before Sphinx reads any
    "weights_table",
    "api_pages",
]
exclude_patterns = ["_build", "_ext", "_generated", "examples/mine"]
nitpicky = False

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are stored executed

# The API reference. Docstrings use single backticks for code.
default_role = "literal"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# Pages
html_theme = "pydata_sphinx_theme"
html_title = f"nas_transfer {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
    "show_toc_level": 2,
    "pygments_light_style": "friendly",
    "pygments_dark_style": "monokai",
}
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"
