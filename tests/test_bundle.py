"""`bundle.json`: strict, inside its folder, and true to the files beside it."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptsr_edge.bundle import (
    MANIFEST,
    Bundle,
    BundleFile,
    Parity,
    RecommendedVariant,
    Variant,
    VerifiedOn,
    add_verification,
    baseline_place,
    bundle_card,
    check_files,
    describe_file,
    describe_io,
    files_digest,
    private_copy,
    read_bundle,
    write_bundle,
    write_recommended,
)
from ptsr_edge.core.config import LABELS, Preprocess, named_model, parse
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.datasets import DATASETS
from ptsr_edge.vision.flow import to_input


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A manifest with one variant of two files, written in `tmp_path` with them."""
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "weights.bin").write_bytes(b"weights")
    variant = Variant(
        id="ptsr-nano-cpu-fp32-k49",
        target="cpu",
        keep_rate=1.0,
        tokens=49,
        precision="fp32",
        artifact="graph.onnx",
        files=[describe_file(tmp_path, tmp_path / name) for name in ("graph.onnx", "shared/weights.bin")],
        macs=1,
        parameters=1,
        parity=Parity(reference="eager fp32", samples=1, max_abs=0.0, top1_agreement=1.0, limit=1e-4),
        built_with={},
        runs_on={},
    )
    made = Bundle(
        schema=1,
        name="ptsr-nano",
        target="cpu",
        model=named_model("ptsr-nano"),
        labels=list(LABELS),
        preprocess=Preprocess(image_size=28),
        io=describe_io(named_model("ptsr-nano"), Preprocess(image_size=28)),
        provenance={"kind": "random"},
        variants=[variant],
    )
    write_bundle(tmp_path, made)
    return made


def edited(folder: Path, *place: str | int, value: Any) -> None:
    """Puts a value into the manifest on the disk."""
    record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(record), encoding="utf-8")


def test_it_reads_back_what_it_wrote(tmp_path: Path, bundle: Bundle) -> None:
    assert read_bundle(tmp_path) == bundle
    record = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    # The names that the contract fixes.
    assert set(record) == {
        "schema", "name", "target", "model", "labels", "preprocess", "io", "provenance", "variants",
        "cascades", "recommended",
    }  # fmt: skip
    fixed = {"id", "keep_rate", "tokens", "precision", "artifact", "files", "macs", "parameters", "parity",
             "built_with", "runs_on"}  # fmt: skip
    assert fixed <= set(record["variants"][0])
    assert set(record["variants"][0]["files"][0]) == {"path", "bytes", "sha256"}
    parity = {"reference", "samples", "max_abs", "top1_agreement", "limit"}
    assert parity <= set(record["variants"][0]["parity"])


@pytest.mark.parametrize("flat", ["", "motion", "strain"])
def test_the_formula_of_the_manifest_is_what_is_computed(flat: str) -> None:
    """Its text, read by numpy, against `to_input`; the median lies apart from the mean, and the spreads differ."""
    rng = np.random.default_rng(0)
    sample = (rng.exponential(size=(28, 28, 3)) * [1.0, 5.0, 0.1]).astype(np.float32)
    if flat:
        sample[..., slice(0, 2) if flat == "motion" else 2] = 3.0
    io = describe_io(named_model("ptsr-nano"), Preprocess(image_size=28))
    words = {name: getattr(np, name) for name in ("median", "var", "std", "sqrt", "where")}
    channels = dict(zip(("u", "v", "strain"), np.moveaxis(sample.astype(np.float64), -1, 0), strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [
            eval(text, {"__builtins__": {}}, words | channels | io.normalisation.constants)
            for text in io.normalisation.formula.values()
        ]
    expected = to_input(sample)
    assert expected.shape == tuple(io.inputs[0].shape)
    assert sample.shape == tuple(io.sample.shape)
    # float64 rounded to float32 once; the last bit may differ with the order of the products.
    np.testing.assert_allclose(np.stack(found)[None], expected, rtol=1e-6, atol=1e-7)


def test_a_baseline_keeps_nothing() -> None:
    outputs = [
        describe_io(named_model(name), Preprocess(image_size=28)).outputs
        for name in ("ptsr-nano", "vit-nano")
    ]
    assert [[output.name for output in each] for each in outputs] == [["logits", "kept"], ["logits"]]


@pytest.mark.usefixtures("bundle")
def test_a_bundle_of_an_older_version_says_nothing_of_its_arrays(tmp_path: Path) -> None:
    record = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    del record["io"]
    (tmp_path / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    assert read_bundle(tmp_path).io is None


def test_a_file_is_described_by_what_it_is(tmp_path: Path, bundle: Bundle) -> None:
    graph, weights = bundle.variants[0].files
    assert graph == BundleFile(path="graph.onnx", bytes=5, sha256=sha256_of(tmp_path / "graph.onnx"))
    assert (weights.path, weights.bytes) == ("shared/weights.bin", 7)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../weights.bin", "a/../../b", "a\\..\\b", "a\0b", "..", ".", "", "a" * 201]
)
@pytest.mark.usefixtures("bundle")
def test_a_path_that_leaves_the_bundle_is_refused(tmp_path: Path, path: str) -> None:
    edited(tmp_path, "variants", 0, "files", 0, "path", value=path)
    with pytest.raises(InputError, match="a path must be relative and stay inside the bundle") as caught:
        read_bundle(tmp_path)
    assert "variants.0.files.0.path" in str(caught.value)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../graph.onnx", "other.onnx"])
@pytest.mark.usefixtures("bundle")
def test_an_artifact_must_be_one_of_the_files_that_are_checked(tmp_path: Path, path: str) -> None:
    edited(tmp_path, "variants", 0, "artifact", value=path)
    with pytest.raises(InputError, match="artifact"):
        read_bundle(tmp_path)


def test_a_baseline_lies_beside_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert baseline_place(Path("out/pi")) == Path("out/pi-baseline")
    assert baseline_place(Path("../pi/")) == Path("../pi-baseline")
    (tmp_path / "pi" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pi" / "deep")
    assert baseline_place(Path("..")) == tmp_path / "pi-baseline"


@pytest.mark.parametrize("number", [0, 2, "1", None])
@pytest.mark.usefixtures("bundle")
def test_a_bundle_of_another_schema_is_refused(tmp_path: Path, number: object) -> None:
    edited(tmp_path, "schema", value=number)
    with pytest.raises(InputError, match=r"bundle\.json: schema: Input should be 1 \(found "):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("variants",), [], "variants: List should have at least 1 item"),
        (("variants", 0, "keep_rate"), 1.5, "variants.0.keep_rate: Input should be less than or equal to 1"),
        (("variants", 0, "tokens"), 0, "variants.0.tokens: Input should be greater than or equal to 1"),
        (("modell",), 1, "unknown key 'modell'; the nearest known key is 'model'"),
    ],
)
@pytest.mark.usefixtures("bundle")
def test_a_bad_manifest_is_refused(
    tmp_path: Path, place: tuple[str | int, ...], value: object, says: str
) -> None:
    edited(tmp_path, *place, value=value)
    with pytest.raises(InputError) as caught:
        read_bundle(tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": ["a", "b"]}, "labels must be 3 different names"),
        ({"labels": ["a", "b", "b"]}, "labels must be 3 different names"),
        ({"preprocess": {"image_size": 56}}, "samples are made of 56 pixels, the model takes"),
    ],
)
def test_labels_and_samples_are_those_of_the_model(
    tmp_path: Path, bundle: Bundle, change: dict[str, Any], says: str
) -> None:
    record = bundle.model_dump(mode="json", by_alias=True) | change
    (tmp_path / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_bundle(tmp_path)


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "../elsewhere", "a/b", "", ".hidden", "a" * 129])
def test_the_name_of_a_variant_is_no_path(tmp_path: Path, bundle: Bundle, name: str) -> None:
    record = bundle.model_dump(mode="json", by_alias=True)
    record["variants"][0]["id"] = name
    (tmp_path / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=r"variants\.0\.id"):
        read_bundle(tmp_path)
    record["variants"][0]["id"] = "m" * 64 + "-openvino-int8-k196"  # of the longest name of a model
    (tmp_path / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    read_bundle(tmp_path)


def test_a_folder_that_is_none_or_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a folder; a bundle is a folder with a bundle\.json"):
        read_bundle(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no bundle\.json"):
        read_bundle(tmp_path)


def test_files_that_are_as_exported_pass(tmp_path: Path, bundle: Bundle) -> None:
    check_files(tmp_path, bundle.variants[0])


def test_a_missing_file_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "shared" / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin is missing: export the bundle again"):
        check_files(tmp_path, bundle.variants[0])


@pytest.mark.parametrize("content", [b"weightz", b"weights and more", b""])
def test_a_changed_file_is_refused(tmp_path: Path, bundle: Bundle, content: bytes) -> None:
    (tmp_path / "shared" / "weights.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.bin has changed since it was exported"):
        check_files(tmp_path, bundle.variants[0])


def test_a_copy_holds_what_was_proven_and_nothing_else_and_goes(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "shared" / "other.bin").write_bytes(b"other weights")
    variant = bundle.variants[0]
    with private_copy(tmp_path, [variant, variant]) as place:
        copied = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        assert copied == {entry.path for entry in variant.files}
        assert all((place / name).read_bytes() == (tmp_path / name).read_bytes() for name in copied)
        assert place.stat().st_mode & 0o077 == 0
    assert not place.exists()


def test_files_of_one_content_are_one_file_in_a_copy(tmp_path: Path, bundle: Bundle) -> None:
    variant = bundle.variants[0]
    (tmp_path / "again.bin").write_bytes((tmp_path / "shared" / "weights.bin").read_bytes())
    files = [*variant.files, describe_file(tmp_path, tmp_path / "again.bin")]
    with private_copy(tmp_path, [variant.model_copy(update={"files": files})]) as place:
        assert (place / "again.bin").samefile(place / "shared" / "weights.bin")


def test_a_file_that_is_exchanged_while_it_is_read_reaches_nobody(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the exchange comes: the copy is of the right bytes, or there is none."""
    weights = tmp_path / "shared" / "weights.bin"
    right, wrong = weights.read_bytes(), b"w" * weights.stat().st_size
    opened = os.open
    for exchanged_at in ("before", "after"):

        def exchange(path: Any, *flags: Any, at: str = exchanged_at) -> int:
            if Path(path) != weights:
                return opened(path, *flags)
            if at == "before":
                weights.write_bytes(wrong)
                return opened(path, *flags)
            number = opened(path, *flags)
            (tmp_path / "evil").write_bytes(wrong)
            (tmp_path / "evil").replace(weights)
            return number

        weights.write_bytes(right)
        monkeypatch.setattr(os, "open", exchange)
        found = []
        with contextlib.suppress(InputError), private_copy(tmp_path, bundle.variants[:1]) as place:
            found.append((place / "shared" / "weights.bin").read_bytes())
        monkeypatch.setattr(os, "open", opened)
        assert found == ([] if exchanged_at == "before" else [right])


@pytest.mark.parametrize("read", [check_files, lambda folder, one: private_copy(folder, [one]).__enter__()])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, bundle: Bundle, read: Any) -> None:
    (tmp_path / "shared" / "weights.bin").unlink()
    os.mkfifo(tmp_path / "shared" / "weights.bin")
    with pytest.raises(InputError, match=r"weights\.bin is no file"):
        read(tmp_path, bundle.variants[0])


def test_no_room_for_a_copy_is_one_line(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(JobError, match="cannot be copied into .*: set TMPDIR"),
        private_copy(tmp_path, bundle.variants),
    ):
        pass


def test_a_variant_does_not_change_under_the_reader(bundle: Bundle) -> None:
    record = copy.deepcopy(bundle.variants[0].model_dump())
    assert parse(Variant, record, "here") == bundle.variants[0]
    with pytest.raises(ValueError, match="frozen"):
        bundle.variants[0].tokens = 1


def verified(**changes: Any) -> VerifiedOn:
    found = dict(machine="aarch64 (a board)", runtime="onnxruntime 1", reference="onnxruntime 1 on x86_64",
                 samples=8, max_abs=1e-6, top1_agreement=1.0, date=datetime.date(2026, 1, 2))  # fmt: skip
    return VerifiedOn(**found | changes)


def test_a_verification_is_added_and_nothing_else_changes(tmp_path: Path, bundle: Bundle) -> None:
    assert bundle.variants[0].verified_on == []
    add_verification(tmp_path, bundle.variants[0].id, verified())
    found = read_bundle(tmp_path)
    assert found.variants[0].verified_on == [verified()]
    assert found.model_copy(update={"variants": bundle.variants}) == bundle
    assert found.variants[0].model_copy(update={"verified_on": []}) == bundle.variants[0]
    record = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))["variants"][0]["verified_on"][0]
    # The names that are written, and the date as ISO 8601 has it.
    assert set(record) == {"machine", "runtime", "reference", "samples", "max_abs", "top1_agreement",
                           "kept_agreement", "date"}  # fmt: skip
    assert record["date"] == "2026-01-02"


def test_a_run_replaces_the_earlier_one_of_its_machine_and_runtime(tmp_path: Path, bundle: Bundle) -> None:
    name = bundle.variants[0].id
    for record in (verified(), verified(runtime="onnxruntime 2"), verified(samples=9)):
        add_verification(tmp_path, name, record)
    assert read_bundle(tmp_path).variants[0].verified_on == [
        verified(runtime="onnxruntime 2"),
        verified(samples=9),
    ]


def test_a_verification_of_no_variant_or_of_changed_files_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(InputError, match=r"has no variant 'other'; it has ptsr-nano-cpu-fp32-k49"):
        add_verification(tmp_path, "other", verified())
    (tmp_path / "graph.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"graph\.onnx has changed since it was exported"):
        add_verification(tmp_path, bundle.variants[0].id, verified())
    assert (tmp_path / MANIFEST).read_bytes() == before


@pytest.mark.usefixtures("bundle")
def test_a_bundle_of_before_there_were_verifications_is_read(tmp_path: Path) -> None:
    record = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    del record["variants"][0]["verified_on"]
    (tmp_path / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    assert read_bundle(tmp_path).variants[0].verified_on == []


def test_a_card_says_training_use_and_law() -> None:
    card = bundle_card(DATASETS["synthetic"].card)
    assert card.startswith("trained on synthetic faces rendered by ptsr-edge itself")
    for part in ("no decision about a person", "(EU) 2024/1689", "article 5(1)(f)", "workplace", "education"):
        assert part in card
    assert "\n" not in card
    assert bundle_card(None).startswith("training unknown. ")


def recommending(bundle: Bundle, kind: str = "measured") -> dict[str, str]:
    return {"variant": bundle.variants[0].id, "kind": kind, "reason": "a test says so"}


def test_a_recommendation_is_written_and_nothing_else_changes(tmp_path: Path, bundle: Bundle) -> None:
    assert bundle.recommended is None
    choice = parse(RecommendedVariant, recommending(bundle))
    write_recommended(tmp_path, choice)
    found = read_bundle(tmp_path)
    assert found.recommended == choice
    assert found.model_copy(update={"recommended": None}) == bundle


@pytest.mark.usefixtures("bundle")
def test_a_bundle_of_before_there_were_recommendations_is_read(tmp_path: Path) -> None:
    record = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    del record["recommended"]
    (tmp_path / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    assert read_bundle(tmp_path).recommended is None


def test_two_variants_of_one_id_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    edited(tmp_path, "variants", value=[bundle.variants[0].model_dump(mode="json")] * 2)
    with pytest.raises(
        InputError, match="each variant must have an id of its own, got 'ptsr-nano-cpu-fp32-k49' 2 times"
    ):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"variant": "other"}, "recommended.variant must be one of ptsr-nano-cpu-fp32-k49, got 'other'"),
        ({"kind": "guessed"}, "recommended.kind: Input should be 'measured', 'judged' or 'unjudged'"),
    ],
)
def test_a_recommendation_of_nothing_that_is_there_is_refused(
    tmp_path: Path, bundle: Bundle, change: dict[str, str], says: str
) -> None:
    edited(tmp_path, "recommended", value=recommending(bundle) | change)
    with pytest.raises(InputError) as caught:
        read_bundle(tmp_path)
    assert says in str(caught.value)


def test_a_recommendation_of_changed_files_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    before = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / "graph.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"graph\.onnx has changed since it was exported"):
        write_recommended(tmp_path, parse(RecommendedVariant, recommending(bundle)))
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_files_have_one_digest_whatever_their_order(bundle: Bundle) -> None:
    variant = bundle.variants[0]
    turned = variant.model_copy(update={"files": variant.files[::-1]})
    other = variant.model_copy(update={"files": variant.files[:1]})
    assert files_digest(turned) == files_digest(variant) != files_digest(other)
