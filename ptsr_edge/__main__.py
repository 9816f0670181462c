"""`python -m ptsr_edge VERB ...` is `ptsr-edge VERB ...`."""

from ptsr_edge.cli import main
from ptsr_edge.core.console import run

if __name__ == "__main__":
    run(main, "python -m ptsr_edge")
