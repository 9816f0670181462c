"""ptsr-edge beside what a user would do otherwise, in one interleaved run: `python -m benchmarks.speed`."""
