"""One runner for each runtime, and what builds an engine on the device itself."""
