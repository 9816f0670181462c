"""`ptsr-edge VERB ...`, and the same as `python -m ptsr_edge VERB ...`.

A verb's module is imported only when the verb is called, so `--help` loads no torch.
"""

from __future__ import annotations

from typing import Any

import click

from ptsr_edge import __version__
from ptsr_edge.core.console import VERBS, Printing, give_up, give_up_interrupted, load_verb, printing, run
from ptsr_edge.core.errors import PtsrError


class Verbs(Printing, click.Group):
    """The group of all verbs; an error of its own is one line and exit code 1 or 2, as theirs are."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if ctx.resilient_parsing and name not in VERBS:  # a shell completes what is not a verb yet
            return None
        return load_verb(name)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.line) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PtsrError as error:
            give_up(ctx, str(error), error.exit_code)
        except KeyboardInterrupt as error:
            give_up_interrupted(ctx, error)


@click.group(
    cls=Verbs,
    epilog="Example: ptsr-edge export --target cpu --budgets 1.0,0.5,0.25",
)
@click.option(
    "--version", "-V", is_flag=True, expose_value=False, is_eager=True, help="Show the version and exit.",
    callback=printing(lambda ctx: f"{ctx.command_path}, version {__version__}"),
)  # fmt: skip
def main() -> None:
    """Turn PTSR, a micro-expression transformer, into artifacts for edge devices, and measure them.

    `ptsr-edge VERB --help` tells more. An option that is not given is taken from the environment variable
    PTSR_EDGE_VERB_OPTION, such as PTSR_EDGE_EXPORT_PRECISION for `export --precision`.
    """


if __name__ == "__main__":
    run(main, "python -m ptsr_edge")
