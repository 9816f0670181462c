"""Data sets as labelled flow samples."""
