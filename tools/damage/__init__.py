"""Damages whole commands, pipelines and sessions, and tells how they end."""
