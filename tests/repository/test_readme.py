"""What the README tells people to type is typed here, in order, in one copy of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme import Block, run_block, runnable_blocks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = runnable_blocks(README)
RUN = [block for block in BLOCKS if block.not_run is None]

QUICK = {"OMP_NUM_THREADS": "1", "PTSR_EDGE_TRAIN_EPOCHS": "1", "PTSR_EDGE_PROFILE_DURATION_S": "0.2"}
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
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files without the package: what runs is the one that is installed."""
    folder = tmp_path_factory.mktemp("readme")
    call = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\0")
    for name in listed:
        if name and not name.startswith(("ptsr_edge/", "tests/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.skipif(not RUN, reason="the README has no commands to run")
@pytest.mark.parametrize("block", RUN, ids=lambda block: f"line{block.line}")
def test_the_readme_does_what_it_says(block: Block, workspace: Path) -> None:
    run_block(block, workspace, QUICK, LIMIT_S)


def test_every_command_that_is_not_run_here_says_why() -> None:
    assert [block.line for block in BLOCKS if block.not_run == ""] == []


def test_every_target_of_make_in_the_readme_is_in_the_makefile() -> None:
    known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    typed = {
        name for block in BLOCKS for name in re.findall(r"^\s*make ([a-z]+)", block.program, re.MULTILINE)
    }
    assert typed <= set(known)


def test_every_link_of_the_readme_into_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


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
