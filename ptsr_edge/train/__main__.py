"""`python -m ptsr_edge.train` is `ptsr-edge train`."""

from ptsr_edge.core.console import run_verb

if __name__ == "__main__":
    run_verb("train")
