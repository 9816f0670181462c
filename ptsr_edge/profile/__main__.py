"""`python -m ptsr_edge.profile` is `ptsr-edge profile`."""

from ptsr_edge.core.console import run_verb

if __name__ == "__main__":
    run_verb("profile")
