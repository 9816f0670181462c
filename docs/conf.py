"""Builds the pages of this folder into a site: `make docs`."""

from importlib import metadata

project = "ptsr-edge"
release = metadata.version("ptsr-edge")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.mermaid",
]
html_theme = "furo"
html_title = f"ptsr-edge {release}"
exclude_patterns = ["conf.py"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
# Links to files of the repository that are no pages of the site stay links to the repository.
suppress_warnings = ["myst.xref_missing"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
add_module_names = False
default_role = "code"
