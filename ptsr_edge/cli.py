"""`ptsr-edge VERB ...`: every verb is the module of its name, imported only when it is called.

`--help` therefore loads neither torch nor a runtime.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

from ptsr_edge.errors import InputError, MissingExtraError, PtsrError

VERBS = {
    "data": "Check what a folder holds of a data set: found, missing, odd, and counts beside the published ones.",
    "train": "Train PTSR or its full-token baseline and write a checkpoint.",
    "evaluate": "Judge a bundle's artifacts, a checkpoint, or a model trained afresh in each fold.",
    "export": "Turn a checkpoint into a bundle of proven, static token-budget variants.",
    "profile": "Measure MACs, latency, memory, size and accuracy of every variant beside the full-token ViT.",
    "report": "Turns profiles into a page, a Markdown file, a JSON record and pictures, and chooses a variant.",
    "camera": "Turn frames of cameras or files into events, one JSON line each.",
    "doctor": "Say what is installed, and which targets can be built and run here.",
}
"""All verbs in the order in which they are used, with their lines in `--help`."""


class Verbs(click.Group):
    """The group of all verbs; an error of its own is one line and exit code 1 or 2, as theirs are."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command:
        return load_verb(name)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PtsrError as error:
            click.echo(f"{ctx.command_path}: {' '.join(str(error).split())}", err=True)
            sys.exit(error.exit_code)


def load_verb(name: str) -> click.Command:
    """Imports a verb's module and returns its command.

    Raises:
        InputError: there is no such verb; the message names the nearest.
        MissingExtraError: a package that its module imports is not installed.
    """
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown verb {name!r}; nearest: {near}; known: {', '.join(VERBS)}")
    try:
        command: click.Command = importlib.import_module(f"ptsr_edge.{name}").main
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "ptsr_edge"):
            raise
        # Runtimes and drawing are imported late, with their own message: what is left is `train`.
        raise MissingExtraError(
            f"{name} needs the package {package!r}, which is not installed ({error}): "
            "pip install 'ptsr-edge[train]'"
        ) from error
    return command


@click.group(
    cls=Verbs,
    context_settings={"auto_envvar_prefix": "PTSR_EDGE"},
    epilog="Example: ptsr-edge export --target cpu --budgets 1.0,0.5,0.25",
)
@click.version_option(package_name="ptsr-edge")
def main() -> None:
    """Turn PTSR, a micro-expression transformer, into artifacts for edge devices, and measure them.

    `ptsr-edge VERB --help` tells more. An option that is not given is taken from the environment where
    it has PTSR_EDGE_VERB_OPTION, such as PTSR_EDGE_TRAIN_EPOCHS.
    """


if __name__ == "__main__":
    main(prog_name="python -m ptsr_edge.cli")
