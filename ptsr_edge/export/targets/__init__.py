"""One builder for each target."""
