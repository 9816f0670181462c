"""Damage that is done to whole commands, pipelines and sessions on purpose, and counts of how it ends."""
