"""PTSR and its full-token baseline in torch: built, stored, run, counted."""
