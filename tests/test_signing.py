"""A signed bundle is taken; one that was changed, signed by another, unsigned or too old is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_data import write_tiny_bundle
from click.testing import CliRunner

from ptsr_edge import Session
from ptsr_edge.bundle import MANIFEST, read_bundle
from ptsr_edge.core.errors import InputError, MissingExtraError
from ptsr_edge.signing import KEY_VARIABLE, SERIAL_VARIABLE, SIGNATURE, main, make_key, read_verified, sign_bundle

pytest.importorskip("cryptography", reason="cryptography is missing: the extra sign brings it")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair of keys, a second one, and a bundle that was signed by the first with serial 7."""
    place = tmp_path_factory.mktemp("signed")
    make_key(place / "ours.pem")
    make_key(place / "other.pem")
    write_tiny_bundle(place / "bundle")
    sign_bundle(place / "bundle", place / "ours.pem", serial=7)
    return place


@pytest.fixture
def bundle(signed: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(signed / "bundle", tmp_path / "bundle"))


def change(bundle: Path, edit: Callable[[Any], object]) -> None:
    record = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    edit(record)
    (bundle / MANIFEST).write_text(json.dumps(record), encoding="utf-8")


def test_a_signed_bundle_is_opened(signed: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session.open(bundle, verify=signed / "ours.pem.pub") as session:
        assert session.labels == read_bundle(bundle).labels
    monkeypatch.setenv(KEY_VARIABLE, str(signed / "ours.pem.pub"))
    monkeypatch.setenv(SERIAL_VARIABLE, "7")
    Session.open(bundle).close()


def test_what_a_device_adds_needs_no_new_signature(signed: Path, bundle: Path) -> None:
    trial = dict(settings={}, speedup=None, trials=[], cpu="x", cores=1, runtime="onnxruntime 1", threads=None)
    change(bundle, lambda record: record["variants"][0].update(tuned=trial | {"date": "2026-01-01"}))
    assert read_verified(bundle, signed / "ours.pem.pub").variants[0].tuned is not None


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["variants"][0]["files"][0].update(sha256="0" * 64),
        lambda record: record.update(labels=record["labels"][::-1]),
        lambda record: record["variants"].reverse(),
        lambda record: record["provenance"].update(card="trained by somebody else"),
        lambda record: record["preprocess"].update(flow="dis-medium"),
    ],
)
def test_a_changed_manifest_is_refused(signed: Path, bundle: Path, edit: Callable[[Any], object]) -> None:
    change(bundle, edit)
    with pytest.raises(InputError, match=r"was changed after it was signed: its signature does not fit bundle\.json"):
        Session.open(bundle, verify=signed / "ours.pem.pub")


def test_a_changed_file_is_refused_by_its_hash(signed: Path, bundle: Path) -> None:
    path = bundle / read_bundle(bundle).variants[0].artifact
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(InputError, match="has changed since it was exported"):
        Session.open(bundle, budget=read_bundle(bundle).variants[0].keep_rate, verify=signed / "ours.pem.pub")


def test_the_signature_of_another_is_refused(signed: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match=r"is signed by another key .* than .*other\.pem\.pub"):
        read_verified(bundle, signed / "other.pem.pub")
    # Whoever writes the right name of the key under a signature of his own has not got the key.
    sign_bundle(bundle, signed / "other.pem", serial=9)
    ours = json.loads((signed / "bundle" / SIGNATURE).read_text(encoding="utf-8"))
    forged = json.loads((bundle / SIGNATURE).read_text(encoding="utf-8")) | {"key": ours["key"]}
    (bundle / SIGNATURE).write_text(json.dumps(forged), encoding="utf-8")
    with pytest.raises(InputError, match="was changed after it was signed"):
        read_verified(bundle, signed / "ours.pem.pub")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 1, "key": "x", "serial": 7, "signature": "!"}'])
def test_a_signature_that_is_none_is_refused(signed: Path, bundle: Path, content: str) -> None:
    (bundle / SIGNATURE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError):
        read_verified(bundle, signed / "ours.pem.pub")


def test_a_raised_serial_or_a_missing_signature_is_refused(
    signed: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(signed / "ours.pem.pub"))
    monkeypatch.setenv(SERIAL_VARIABLE, "8")
    with pytest.raises(InputError, match="is older than it may be: its serial is 7, the least is 8"):
        Session.open(bundle)
    record = json.loads((bundle / SIGNATURE).read_text(encoding="utf-8"))
    (bundle / SIGNATURE).write_text(json.dumps(record | {"serial": 8}), encoding="utf-8")
    with pytest.raises(InputError, match="was changed after it was signed"):
        Session.open(bundle)
    monkeypatch.setenv(SERIAL_VARIABLE, "soon")
    with pytest.raises(InputError, match="must be a whole number, found 'soon'"):
        Session.open(signed / "bundle")
    (bundle / SIGNATURE).unlink()
    with pytest.raises(InputError, match="is not signed, and .* asks for a signature"):
        Session.open(bundle)


def test_a_bundle_is_signed_and_checked_on_the_command_line(signed: Path, bundle: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    done = call(bundle, "--key", signed / "ours.pem")
    assert (done.exit_code, done.stdout) == (0, f"{bundle / SIGNATURE}\n")
    done = call(bundle, "--verify", signed / "ours.pem.pub", "--json")
    assert json.loads(done.stdout)["serial"] > 1_700_000_000
    assert call(bundle, "--verify", signed / "other.pem.pub").exit_code == 2
    assert call(bundle).exit_code == 2
    assert call("--new-key", signed / "ours.pem").stderr.endswith("is there already: a key is not overwritten\n")
    for wrong in (signed / "ours.pem.pub", bundle / MANIFEST, signed / "none.pem"):
        assert call(bundle, "--key", wrong).exit_code == 2


def test_a_private_key_is_its_owners_alone(signed: Path) -> None:
    assert (signed / "ours.pem").stat().st_mode & 0o077 == 0
    assert b"PRIVATE" not in (signed / "ours.pem.pub").read_bytes()


def test_without_cryptography_a_bundle_that_must_be_signed_is_not_opened(
    signed: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(MissingExtraError, match=r"\[sign\]"):
        read_verified(bundle, signed / "ours.pem.pub")
