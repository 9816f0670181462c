"""`python -m ptsr_edge.evaluate` is `ptsr-edge evaluate`."""

from ptsr_edge.core.console import run_verb

if __name__ == "__main__":
    run_verb("evaluate")
