"""How answers of two machines are compared, and what is picked for the emulated one. Emulates nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arm import machine, run_on_arm
from arm.__main__ import main, render_samples
from arm.compare import Difference, compare, faults, overlap, strain_scores, verification
from arm.page import Figure, as_table, page
from bundle_data import SIDE, write_tiny_bundle
from click.testing import CliRunner, Result

from ptsr_edge.bundle import add_verification, read_bundle
from ptsr_edge.core.errors import JobError
from ptsr_edge.models.ptsr import strain_scores as selected_by

pytestmark = pytest.mark.slow

HERE = {"logits": [[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]], "kept": [[0, 2], [1, 3]]}
SAME = Difference(samples=2, max_abs=0.0, top1_agreement=1.0, kept_agreement=1.0, tied=0)


def there(logits: list[list[float]] | None = None, kept: list[list[int]] | None = None) -> dict[str, Any]:
    return {"logits": logits or HERE["logits"], "kept": kept or HERE["kept"]}


def test_equal_answers_are_equal_in_any_order_of_the_tokens() -> None:
    assert compare(HERE, HERE) == SAME
    assert compare(HERE, there(kept=[[2, 0], [3, 1]])) == SAME


def test_differences_are_counted_by_sample() -> None:
    # By hand: the largest gap is |1.0 - 3.5|; the second sample's class goes from 0 to 1; of the four kept
    # tokens one is another.
    found = compare(HERE, there([[0.0, 1.0, 2.25], [3.0, 3.5, 2.0]], [[0, 2], [1, 0]]))
    assert found == Difference(samples=2, max_abs=2.5, top1_agreement=0.5, kept_agreement=0.75, tied=0)


def test_a_tie_counts_as_the_same_token_and_its_logits_are_left_out() -> None:
    scores = np.array([[4.0, 1.0, 3.0, 0.0], [1.0, 2.0, 2.0, 5.0]])
    swapped = there([[0.0, 1.0, 2.0], [3.5, 1.0, 2.0]], [[0, 2], [2, 3]])
    assert compare(HERE, swapped, scores) == Difference(2, 0.0, 1.0, 1.0, tied=1)
    # Without the scores it is another token, and the logits count.
    assert compare(HERE, swapped) == Difference(2, 0.5, 1.0, 0.75, tied=0)
    # Where every sample is tied, there is nothing else to judge by.
    only = {key: value[1:] for key, value in HERE.items()}
    assert compare(only, {key: value[1:] for key, value in swapped.items()}, scores[1:]).max_abs == 0.5


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ([0, 1], 1.0),
        ([0, 2], 1.0),  # as high as the lowest that was kept
        ([0, 3], 0.5),  # lower
        ([0], 0.0),  # another number of tokens is no selection of this budget
        ([0, 0], 0.5),  # twice the same
        ([0, 4], 0.5),  # there is no patch 4
        ([0, -1], 0.5),
    ],
)
def test_overlap_of_selections(other: list[int], share: float) -> None:
    assert overlap([0, 1], other, np.array([3.0, 2.0, 2.0, 1.0])) == share


@pytest.mark.parametrize("logits", [[[0.0, 1.0, 2.0]], [[0.0, 1.0], [3.0, 1.0]]])
def test_answers_to_other_questions_are_refused(logits: list[list[float]]) -> None:
    with pytest.raises(JobError, match="samples and classes"):
        compare(HERE, there(logits))


def test_answers_that_are_no_numbers_are_infinitely_far() -> None:
    found = compare(HERE, there([[0.0, float("nan"), 2.0], [3.0, 1.0, 2.0]]))
    assert found.max_abs == float("inf")
    assert faults(found, "fp32")


@pytest.mark.parametrize(
    ("precision", "changes", "says"),
    [
        ("fp32", {"max_abs": 1e-4}, []),
        ("fp32", {"max_abs": 1.1e-4}, ["logits differ by up to 0.00011, limit 0.0001"]),
        ("fp32", {"kept_agreement": 0.99}, ["only 99.00% of the tokens are the same, and no ties"]),
        ("fp32", {"top1_agreement": 0.95}, ["same class for 95.0%, least 100%"]),
        ("int8", {"max_abs": 0.3, "kept_agreement": 0.99, "top1_agreement": 0.9}, []),
        ("int8", {"top1_agreement": 0.89}, ["same class for 89.0%, least 90%"]),
    ],
)
def test_what_may_not_be(precision: str, changes: dict[str, float], says: list[str]) -> None:
    assert faults(Difference(**{**vars(SAME), **changes}), precision) == says


def test_scores_are_those_that_the_model_selects_by() -> None:
    inputs = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = selected_by(torch.from_numpy(inputs), 4).numpy()
    # fp32 sums of 16 values against fp64 ones.
    np.testing.assert_allclose(strain_scores(inputs, 4), expected, atol=1e-6)


def test_a_bundle_is_asked_compared_and_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_tiny_bundle(folder)
    flows = np.random.default_rng(0).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    answers = json.loads(json.dumps(run_on_arm.answers(folder, flows)))
    variants = read_bundle(folder).variants
    assert list(answers["variants"]) == [variant.id for variant in variants]
    for variant in variants:
        found = compare(answers["variants"][variant.id], answers["variants"][variant.id])
        assert found == Difference(3, 0.0, 1.0, 1.0, 0)
        assert len(answers["variants"][variant.id]["kept"][0]) == variant.tokens
        add_verification(folder, variant.id, verification(found, "aarch64 (a board)", answers, answers))
    (record,) = read_bundle(folder).variants[0].verified_on
    assert (record.machine, record.samples, record.max_abs) == ("aarch64 (a board)", 3, 0.0)
    assert record.runtime == f"onnxruntime {answers['packages']['onnxruntime']}"
    assert record.reference == f"{record.runtime} on {answers['machine']}"


def on_a_board(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle, and a file of what a board with the same arithmetic would have written."""
    folder, file = tmp_path / "bundle", tmp_path / "answers.json"
    held = {"held_out_subjects": ["synthetic/005"]}
    samples = render_samples(write_tiny_bundle(folder, provenance=held), 2, tmp_path)
    file.write_text(json.dumps(run_on_arm.answers(folder, samples.flows)), encoding="utf-8")
    return folder, file


def ask(folder: Path, *more: str) -> Result:
    call = ["--bundle", str(folder), "--samples", "2", "--work", str(folder.parent), *more]
    return CliRunner().invoke(main, call)


def test_answers_of_a_board_are_recorded(tmp_path: Path) -> None:
    folder, file = on_a_board(tmp_path)
    done = ask(folder, "--answers", str(file), "--machine", "aarch64 (a board)")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder / "bundle.json")
    for variant in read_bundle(folder).variants:
        assert [(one.machine, one.samples, one.max_abs) for one in variant.verified_on] == [
            ("aarch64 (a board)", 2, 0.0)
        ]


def test_a_board_that_answers_otherwise_fails_and_is_not_recorded(tmp_path: Path) -> None:
    folder, file = on_a_board(tmp_path)
    told = json.loads(file.read_text(encoding="utf-8"))
    name = read_bundle(folder).variants[0].id
    told["variants"][name]["logits"][0][1] += 1e-3
    file.write_text(json.dumps(told), encoding="utf-8")
    done = ask(folder, "--answers", str(file), "--machine", "aarch64 (a board)")
    assert done.exit_code == 1
    assert f"{name} on aarch64 (a board): logits differ by up to 0.001" in done.stderr
    first, second = read_bundle(folder).variants
    assert (len(first.verified_on), len(second.verified_on)) == (0, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples_sha256": "0"}, "are of other samples"),
        ({"variants": {}}, "hold none of this export's ptsr-test-cpu-fp32-k16"),
        ({"packages": {}}, "is not what run_on_arm.py writes"),
    ],
)
def test_answers_of_something_else_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    folder, file = on_a_board(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    done = ask(folder, "--answers", str(file), "--machine", "a board")
    assert (done.exit_code, says in done.stderr) == (2, True), done.stderr
    assert all(not variant.verified_on for variant in read_bundle(folder).variants)


def test_answers_need_the_name_of_their_machine(tmp_path: Path) -> None:
    folder, file = on_a_board(tmp_path)
    done = ask(folder, "--answers", str(file))
    assert done.exit_code == 2
    assert "--answers goes with --machine" in done.stderr


def test_a_bundle_without_a_variant_for_the_cpu_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_tiny_bundle(folder)
    text = (folder / "bundle.json").read_text(encoding="utf-8")
    (folder / "bundle.json").write_text(text.replace('"target": "cpu"', '"target": "trt"'), encoding="utf-8")
    done = CliRunner().invoke(main, ["--bundle", str(folder), "--work", str(tmp_path / "work")])
    assert done.exit_code == 2
    assert "has no variant of target cpu" in done.stderr
    assert not (tmp_path / "work").exists()


def test_samples_are_of_people_that_the_model_has_not_seen(tmp_path: Path) -> None:
    held = ["synthetic/005", "synthetic/010"]
    bundle = write_tiny_bundle(tmp_path / "bundle", provenance={"held_out_subjects": held})
    samples = render_samples(bundle, 3, tmp_path)
    assert samples.flows.shape == (3, SIDE, SIDE, 3)
    np.testing.assert_array_equal(np.load(samples.file)["flows"], samples.flows)
    assert samples.scores is not None
    assert samples.scores.shape == (3, bundle.model.patches)


def test_the_page_and_the_table_hold_every_figure(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    found = Difference(samples=24, max_abs=0.0123, top1_agreement=0.9583, kept_agreement=1.0, tied=2)
    side = {"machine": "aarch64", "python": "3.11.2", "packages": {"numpy": "2", "onnxruntime": "1.27.0"}}
    figures = [Figure("b", one, "aarch64 (emulated)", found, 1.5, [], side, side) for one in bundle.variants]
    text = page(figures, "a processor", Path("profiles/one"))
    for figure in figures:
        assert f"| {' | '.join(figure.row())} |" in text
        assert figure.row()[3:] == ("24", "1.2e-02", "1.50", "95.8%", "100.0% (2 by ties)")
    assert len(as_table(figures)) == 1 + len(figures)


APT = """python3-minimal
  PreDepends: python3.11-minimal
    dpkg:amd64
python3.11-minimal
libpython3.11-stdlib
libc6
libc6:amd64
libperl5.36
perl-base
tar
zlib1g
<awk>
"""


def test_the_machine_gets_python_and_libraries_for_its_own_architecture_only() -> None:
    assert machine.packages_in(APT) == [
        "libc6", "libpython3.11-stdlib", "python3-minimal", "python3.11-minimal", "zlib1g",
    ]  # fmt: skip


def test_a_device_gets_what_the_package_asks_for_and_a_runtime() -> None:
    text = (machine.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    names = [rule.partition(">")[0] for rule in machine.device_requirements(text)]
    assert names == ["numpy", "pydantic", "click", "packaging", "onnxruntime"]


def test_constraints_keep_all_pins_but_the_runtime_s() -> None:
    text = 'numpy==2.4.6 ; python_version >= "3.11"\nonnxruntime==1.32.0 ; python_version >= "3.11"\n'
    assert machine.constraints(text) == f'numpy==2.4.6 ; python_version >= "3.11"\n{machine.ONNXRUNTIME}\n'


def test_without_apt_one_line_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("apt-get") is None
    with pytest.raises(JobError, match="fetched by apt.* apt-get, apt-cache, dpkg not found") as caught:
        machine.prepare(tmp_path / "work")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "work" / "system").exists()


def test_a_tool_s_last_line_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="installing for aarch64: .* said: .*no-such-requirement-file"):
        machine.install(tmp_path, "3.11", ["-r", "no-such-requirement-file"], "")
