"""`python -m ptsr_edge.data` is `ptsr-edge data`."""

from ptsr_edge.core.console import run_verb

if __name__ == "__main__":
    run_verb("data")
