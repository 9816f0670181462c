"""`python -m ptsr_edge.export` is `ptsr-edge export`."""

from ptsr_edge.core.console import run_verb

if __name__ == "__main__":
    run_verb("export")
