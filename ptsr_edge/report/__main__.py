"""`python -m ptsr_edge.report` is `ptsr-edge report`."""

from ptsr_edge.core.console import run_verb

if __name__ == "__main__":
    run_verb("report")
