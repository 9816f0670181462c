"""Statistics of classes, of risk and of time."""
