"""Sphinx settings; tables of measured numbers are rendered from their JSON files when the pages are built."""

import shutil
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from measured_tables import render_placeholders  # noqa: E402

from scmmgpt.version import __version__  # noqa: E402

# Of a package that does not support the next Sphinx yet, hence the pin.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="sphinx_autodoc_typehints")

project = "scmmgpt"
author = "The scmmgpt authors"
copyright = "2026, the scmmgpt authors"
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks and blocks are run by the tests
exclude_patterns = ["_build", "measured"]
autodoc_member_order = "bysource"
default_role = "code"  # docstrings write code in single backticks
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference", "sphinx_autodoc_typehints.guarded_import"]
copybutton_prompt_text = "$ "

html_theme = "sphinx_book_theme"
html_title = "scmmgpt"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "navbar_persistent": [],  # the search stands in the side bar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def copy_notebooks() -> None:
    """Sphinx reads pages below its own folder only; the notebooks live with the other examples."""
    folder = HERE / "notebooks"
    for notebook in (HERE.parent / "examples").glob("*.ipynb"):
        shutil.copy(notebook, folder / notebook.name)


def setup(app):
    """Called by Sphinx: fill in the tables before a page is read."""
    copy_notebooks()
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, render_placeholders(source[0])))
