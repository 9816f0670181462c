"""`python -m ptsr_edge.camera` is `ptsr-edge camera`."""

from ptsr_edge.core.console import run_verb

if __name__ == "__main__":
    run_verb("camera")
