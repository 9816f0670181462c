"""Rendered faces: stills, labelled clips, long videos."""
