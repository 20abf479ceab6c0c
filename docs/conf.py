"""Sphinx settings; tables of results are rendered from hub_cards/results when the pages are built."""

from scmmgpt.version import __version__

project = "scmmgpt"
author = "The scmmgpt authors"
copyright = "2026, the scmmgpt authors"
release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_autodoc_typehints"]
myst_enable_extensions = ["colon_fence", "deflist"]
nb_execution_mode = "off"  # notebooks and blocks are run by the tests
html_theme = "furo"
html_title = "scmmgpt"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference", "sphinx_autodoc_typehints.guarded_import"]
