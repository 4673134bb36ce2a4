"""Sphinx configuration."""

import otbaselines

project = "otbaselines"
author = "The otbaselines contributors"
project_copyright = "The otbaselines contributors"
version = release = otbaselines.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    # MathJax itself, so that formulas are formulas without a network too.
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"otbaselines {release}"
html_static_path = ["_static"]
copybutton_exclude = ".linenos, .gp"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
# Classes of Stable-Baselines3 and PyTorch are documented where they live.
autodoc_inherit_docstrings = False
