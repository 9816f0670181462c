"""Exported bundles on an emulated aarch64 processor: `make test-arm`, see README.md."""
