"""The documentation in HTML: the README, a reference from the docstrings and the notebooks, for reading offline."""
