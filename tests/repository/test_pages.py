"""What the README and the pages of docs/ tell people to type is typed here, page by page, each in a copy of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Block, run_block, runnable_blocks

from ptsr_edge.core.console import VERBS, load_verb

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCKS = {
    page.relative_to(ROOT).as_posix(): runnable_blocks(page.read_text(encoding="utf-8")) for page in PAGES
}
RUN = [(page, block) for page, blocks in BLOCKS.items() for block in blocks if block.not_run is None]
MESSAGES = re.findall(
    r"^\*\*`(.+?)`", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)

QUICK = {
    "PTSR_EDGE_EXPORT_CALIBRATION_SAMPLES": "16",
    "PTSR_EDGE_TRAIN_EPOCHS": "1",
    "PTSR_EDGE_PROFILE_DURATION_S": "0.05",
    "PTSR_EDGE_PROFILE_PROCESSES": "1",
    "PTSR_EDGE_PROFILE_QUICK": "1",
}
"""What makes the commands quick; it fills options that they leave open and changes none that they give."""

LIMIT_S = 600

PAGE = """\
Text with `$ code`.

```console
$ echo one \\
    two
one two
$ echo three > three.txt
```

```sh
test -f three.txt
```

```python
from pathlib import Path

assert Path("three.txt").read_text() == "three\\n"
```

<!-- not run: needs a camera -->
```sh
exit 1
```

<!-- not run: needs the registry -->

```bash
$ exit 1
```

```json
{"not": "runnable"}
```

```console
only what something printed
```
"""


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder for each page, with the repository's files without the package: what runs is the one that is installed."""
    made: dict[str, Path] = {}

    def of(page: str) -> Path:
        if page not in made:
            made[page] = copied_to(tmp_path_factory.mktemp("page"))
        return made[page]

    return of


def copied_to(folder: Path) -> Path:
    call = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\0")
    for name in listed:
        if name and not name.startswith(("ptsr_edge/", "tests/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("page", "block"), [pytest.param(page, block, id=f"{page}:{block.line}") for page, block in RUN]
)
def test_a_page_does_what_it_says(page: str, block: Block, workspaces: Callable[[str], Path]) -> None:
    run_block(block, workspaces(page), QUICK, LIMIT_S)


def test_the_readme_has_commands_that_are_run() -> None:
    assert [block for page, block in RUN if page == "README.md"]


def test_every_command_that_is_not_run_here_says_why() -> None:
    assert [
        (page, block.line) for page, blocks in BLOCKS.items() for block in blocks if block.not_run == ""
    ] == []


def test_every_target_of_make_on_a_page_is_in_the_makefile() -> None:
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    typed = {
        name
        for blocks in BLOCKS.values()
        for block in blocks
        for name in re.findall(r"^\s*make ([a-z-]+)", block.program, re.MULTILINE)
    }
    assert typed <= set(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_option_on_a_page_is_one_of_its_verb() -> None:
    unknown = []
    for page, blocks in BLOCKS.items():
        for block in blocks:
            for verb, options in verbs_in(block.program):
                known = {
                    name
                    for option in load_verb(verb).params
                    for name in (*option.opts, *option.secondary_opts)
                }
                unknown += [(page, block.line, verb, name) for name in options if name not in known]
    assert unknown == []


def verbs_in(program: str) -> list[tuple[str, list[str]]]:
    """The verbs that a program of the shell calls, each with its long options."""
    calls = re.findall(r"(?:ptsr-edge |python -m ptsr_edge\.)([a-z]+)(?: ((?:[^|\n\\]|\\\n)*))?", program)
    return [(verb, re.findall(r"(?<!\S)--[a-z0-9-]+", rest)) for verb, rest in calls if verb in VERBS]


def test_the_verbs_of_a_program_are_found_with_their_options() -> None:
    program = "ptsr-edge export --target cpu --out out/a\npython -m ptsr_edge.profile --bundle x \\\n  --pin | tee --append y\n"
    assert verbs_in(program) == [("export", ["--target", "--out"]), ("profile", ["--bundle", "--pin"])]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_troubleshooting_page_is_one_of_the_source(message: str) -> None:
    """Placeholders (`...`, words in capitals, numbers) stand for what a message fills in."""
    spoken = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in (ROOT / "ptsr_edge").rglob("*.py")
    )
    parts = [part for part in re.split(r"\.\.\.|\b[A-Z]{1,}\b|\d+|'", message) if len(part.strip()) > 3]
    assert parts
    assert [part for part in parts if part.strip() not in spoken] == []


def test_the_pages_build_into_a_site(tmp_path: Path) -> None:
    call = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "docs",
        str(tmp_path / "site"),
    ]
    built = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site/index.html").is_file()


def test_blocks_are_found_with_their_commands_and_reasons() -> None:
    blocks = runnable_blocks(PAGE)
    assert [(block.line, block.language, block.not_run) for block in blocks] == [
        (3, "console", None),
        (10, "sh", None),
        (14, "python", None),
        (21, "sh", "needs a camera"),
        (27, "bash", "needs the registry"),
    ]
    assert blocks[0].program == "echo one \\\n    two\necho three > three.txt\n"


def test_blocks_run_in_one_folder_and_see_what_came_before(tmp_path: Path) -> None:
    for block in runnable_blocks(PAGE):
        if block.not_run is None:
            run_block(block, tmp_path, {}, limit_s=60)


@pytest.mark.parametrize(
    "block",
    [Block(7, "sh", "false\ntrue\n", None), Block(7, "python", "import sys; sys.exit('no')", None)],
    ids=["the first of two commands", "python"],
)
def test_a_block_that_fails_is_told_with_its_line(block: Block, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"^line 7, exit code 1"):
        run_block(block, tmp_path, {}, limit_s=60)


def test_commands_run_with_this_python(tmp_path: Path) -> None:
    program = 'test "$(python -c \'import sys; print(sys.prefix)\')" = "$PREFIX"\nptsr-edge --version\n'
    run_block(Block(1, "sh", program, None), tmp_path, {"PREFIX": sys.prefix}, limit_s=60)


def test_a_block_that_does_not_end_is_stopped_with_its_children(tmp_path: Path) -> None:
    block = Block(7, "sh", "echo begun\nsleep 600\n", None)
    with pytest.raises(AssertionError, match=r"^line 7, stopped after 1 s") as caught:
        run_block(block, tmp_path, {}, limit_s=1)
    assert "begun" in str(caught.value)
