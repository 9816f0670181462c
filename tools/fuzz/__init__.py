"""Damages what the package reads, in every way that files are damaged, and tells what its readers do with it."""
