"""A signed bundle is opened; one that was changed, signed by another, not signed or too old is not."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import SIDE, write_tiny_bundle
from click.testing import CliRunner

from ptsr_edge import Session
from ptsr_edge.bundle import (
    MANIFEST,
    SIGNATURE,
    RecommendedVariant,
    Tuned,
    read_bundle,
    write_recommended,
    write_tuned,
)
from ptsr_edge.core.console import VERBS, load_verb
from ptsr_edge.core.errors import InputError, MissingExtraError
from ptsr_edge.info import describe
from ptsr_edge.profile.fleet import pack
from ptsr_edge.runtimes.build_on_device import BuildError, adopt
from ptsr_edge.sign import (
    KEY_VARIABLE,
    SERIAL_VARIABLE,
    Demand,
    check_signature,
    demanded,
    read_private_key,
    read_verified,
    sign_bundle,
)

serialization = pytest.importorskip(
    "cryptography.hazmat.primitives.serialization", reason="cryptography is missing: the extra sign brings it"
)


def make_keys(stem: Path) -> None:
    """STEM.pem and STEM.pub.pem, by the commands that docs/signing.md names, where openssl is installed."""
    private, public = stem.with_suffix(".pem"), stem.with_suffix(".pub.pem")
    if shutil.which("openssl"):
        page = (Path(__file__).parents[1] / "docs" / "signing.md").read_text(encoding="utf-8")
        commands = [line for line in page.splitlines() if line.startswith("openssl ")][:2]
        assert len(commands) == 2
        for command in commands:
            call = (
                command.replace("release.pub.pem", str(public)).replace("release.pem", str(private)).split()
            )
            subprocess.run(call, check=True, capture_output=True)
        return
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of keys, and a bundle that the first signed with serial 7."""
    folder = tmp_path_factory.mktemp("signed")
    for name in ("ours", "other"):
        make_keys(folder / name)
    write_tiny_bundle(folder / "bundle")
    sign_bundle(folder / "bundle", read_private_key(folder / "ours.pem"), serial=7)
    return folder


@pytest.fixture
def ours(place: Path) -> Path:
    return place / "ours.pub.pem"


@pytest.fixture
def bundle(place: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(place / "bundle", tmp_path / "bundle"))


@pytest.fixture
def on_device(ours: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A device that opens what our key signed, and nothing else."""
    monkeypatch.setenv(KEY_VARIABLE, str(ours))
    return monkeypatch


def edit(path: Path, change: Callable[[Any], object]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def call(verb: str, *arguments: object) -> Any:
    return CliRunner().invoke(load_verb(verb), [str(argument) for argument in arguments])


FLOW = np.zeros((SIDE, SIDE, 3), np.float32)


def test_a_signed_bundle_is_opened(bundle: Path, ours: Path, on_device: pytest.MonkeyPatch) -> None:
    on_device.setenv(SERIAL_VARIABLE, "7")
    with Session.open(bundle) as session:
        assert session.predict(FLOW).label in session.labels
    on_device.delenv(KEY_VARIABLE)
    Session.open(bundle, verify=ours).close()


def test_what_a_device_adds_needs_no_new_signature(bundle: Path, ours: Path) -> None:
    # As a bundle of before there were recommendations: what a device writes adds no key.
    edit(bundle / MANIFEST, lambda record: record.pop("recommended"))
    sign_bundle(bundle, read_private_key(ours.with_name("ours.pem")))
    found = dict(
        settings={}, speedup=None, trials=[], cpu="x", cores=1, runtime="r", threads=None, date="2026-01-01"
    )
    write_tuned(bundle, read_bundle(bundle).variants[0].id, Tuned.model_validate(found))
    assert read_verified(bundle, ours).variants[0].tuned is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["variants"][0]["files"][0].update(sha256="0" * 64),
        lambda record: record["variants"][0].update(target="openvino"),
        lambda record: record["variants"].reverse(),
        lambda record: record.update(labels=record["labels"][::-1]),
        lambda record: record["preprocess"].update(flow="dis-medium"),
        lambda record: record["provenance"].update(card="trained by somebody else"),
        lambda record: record.update(variants={}),
        lambda record: record["variants"].append(1),
    ],
    ids=["hash", "target", "order", "labels", "preprocess", "card", "no list", "no record"],
)
def test_a_changed_manifest_is_refused(bundle: Path, ours: Path, change: Callable[[Any], object]) -> None:
    edit(bundle / MANIFEST, change)
    with pytest.raises(
        InputError, match=r"was changed after it was signed: bundle\.sig does not fit bundle\.json"
    ):
        Session.open(bundle, verify=ours)


def test_a_changed_file_is_refused_by_its_hash(bundle: Path, ours: Path) -> None:
    session = Session.open(bundle, budget=1.0, verify=ours)
    # Another budget is loaded later: a file that was exchanged meanwhile is refused like one that was so before.
    later = bundle / next(one.artifact for one in session.bundle.variants if one.keep_rate == 0.5)
    shutil.copyfile(bundle / session.variant.artifact, later)
    for load in (lambda: session.load(0.5), lambda: Session.open(bundle, budget=0.5, verify=ours)):
        with pytest.raises(InputError, match="has changed since it was exported"):
            load()


def test_a_manifest_that_is_exchanged_after_its_check_is_not_what_is_opened(
    bundle: Path, ours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes between check and use comes too late: there is one read."""
    checked = check_signature

    def exchange(folder: Path, manifest: Any, demand: Demand) -> object:
        record = checked(folder, manifest, demand)
        edit(folder / MANIFEST, lambda found: found.update(labels=["a", "b", "c"]))
        return record

    monkeypatch.setattr("ptsr_edge.sign.check_signature", exchange)
    signed = read_bundle(bundle).labels
    assert Session.open(bundle, verify=ours).labels == signed != read_bundle(bundle).labels


def test_the_signature_of_another_is_refused(place: Path, bundle: Path, ours: Path) -> None:
    with pytest.raises(InputError, match=r"is signed by another key \([0-9a-f]{16}\) than .*other\.pub\.pem"):
        read_verified(bundle, place / "other.pub.pem")
    # Whoever writes the name of our key over a signature of his own has not got the key.
    key = json.loads((bundle / SIGNATURE).read_text(encoding="utf-8"))["key"]
    sign_bundle(bundle, read_private_key(place / "other.pem"), serial=9)
    edit(bundle / SIGNATURE, lambda record: record.update(key=key))
    with pytest.raises(InputError, match="was changed after it was signed"):
        read_verified(bundle, ours)


def test_what_the_key_signs_elsewhere_is_no_signature_of_a_bundle(
    place: Path, bundle: Path, ours: Path
) -> None:
    plain = json.dumps(
        {"serial": 7, "manifest": json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))},
        sort_keys=True, separators=(",", ":"),
    )  # fmt: skip
    other = read_private_key(place / "ours.pem").sign(plain.encode())
    edit(bundle / SIGNATURE, lambda record: record.update(signature=base64.b64encode(other).decode()))
    with pytest.raises(InputError, match="was changed after it was signed"):
        read_verified(bundle, ours)


@pytest.mark.parametrize(
    "field",
    [
        {"signature": "!"},
        {"signature": "\u00fc"},
        {"signature": ""},
        {"key": "x"},
        {"schema": 2},
        {"more": 1},
    ],
)
def test_a_signature_that_is_none_is_refused(bundle: Path, ours: Path, field: dict[str, Any]) -> None:
    edit(bundle / SIGNATURE, lambda record: record.update(field))
    with pytest.raises(InputError, match=r"bundle\.sig"):
        read_verified(bundle, ours)


def test_an_older_bundle_is_refused_and_its_serial_cannot_be_raised(
    bundle: Path, on_device: pytest.MonkeyPatch
) -> None:
    on_device.setenv(SERIAL_VARIABLE, "8")
    with pytest.raises(InputError, match="is older than it may be: its serial is 7, the least is 8"):
        Session.open(bundle)
    edit(bundle / SIGNATURE, lambda record: record.update(serial=8))
    with pytest.raises(InputError, match="was changed after it was signed"):
        Session.open(bundle)


def test_variables_that_cannot_be_meant_open_nothing(bundle: Path, on_device: pytest.MonkeyPatch) -> None:
    for number in ("soon", "-1", "", "\u0667", "9" * 5000):
        on_device.setenv(SERIAL_VARIABLE, number)
        with pytest.raises(InputError, match="must be a whole number"):
            Session.open(bundle)
    on_device.setenv(SERIAL_VARIABLE, "7")
    on_device.setenv(KEY_VARIABLE, "")  # as of a script whose own variable is not set
    with pytest.raises(InputError, match=r"\$PTSR_EDGE_VERIFY is empty"):
        Session.open(bundle)
    on_device.delenv(KEY_VARIABLE)
    with pytest.raises(InputError, match=r"\$PTSR_EDGE_LEAST_SERIAL is set and \$PTSR_EDGE_VERIFY"):
        Session.open(bundle)
    on_device.delenv(SERIAL_VARIABLE)
    assert demanded() is None


OPENERS = {
    "evaluate": ["--bundle"],
    "tune": [],
    "predict": ["--onset", "a.png", "--apex", "b.png", "--bundle"],
    "profile": ["--bundle"],
    "report": ["--profile", "out", "--out", "page", "--max-latency-ms", "5", "--write-choice"],
    "camera": ["--source", "a.png", "--bundle"],
    "info": [],
}
"""Verbs that take a bundle, with what stands before it."""

MAKERS = {"demo", "data", "train", "export", "sign", "doctor"}
"""Verbs that take none, or make it."""


@pytest.mark.parametrize("verb", OPENERS)
def test_every_verb_that_opens_a_bundle_asks_for_its_signature(
    verb: str, bundle: Path, on_device: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_device.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        shutil.copyfile(Path(__file__).parents[1] / "ptsr_edge" / "assets" / "face.png", tmp_path / name)
    (bundle / SIGNATURE).unlink()
    done = call(verb, *OPENERS[verb], bundle)
    assert done.exit_code == (1 if verb == "info" else 2)
    (line,) = [line for line in done.stderr.splitlines() if "is not signed, and only what" in line]
    assert str(bundle) in line


def test_no_verb_and_no_reader_was_forgotten() -> None:
    assert OPENERS.keys() | MAKERS == set(VERBS)
    package = Path(__file__).parents[1] / "ptsr_edge"
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\bread_(bundle|manifest)\b", path.read_text(encoding="utf-8"))
    }
    # `export` reads what it has just written, `info` says what it is told, and neither runs any of it; `build_on_device`
    # reads by itself and takes nothing that is signed.
    assert readers == {
        "bundle.py", "sign.py", "export/cli.py", "export/exporter.py", "info.py", "runtimes/build_on_device.py",
    }  # fmt: skip


@pytest.mark.usefixtures("on_device")
def test_the_baseline_beside_a_bundle_has_to_be_signed_too(bundle: Path, tmp_path: Path) -> None:
    done = call("profile", "--bundle", bundle, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "export the bundle with --with-baseline --sign KEY" in done.stderr
    write_tiny_bundle(bundle.with_name("bundle-baseline"), (1.0,), kind="vit")
    assert (
        "bundle-baseline is not signed"
        in call("profile", "--bundle", bundle, "--out", tmp_path / "out").stderr
    )


def test_a_device_of_a_fleet_is_sent_the_signature_too(place: Path, bundle: Path) -> None:
    write_tiny_bundle(bundle.with_name("bundle-baseline"), (1.0,), kind="vit")
    sent = pack([bundle], None)
    digest = sent.files["bundle"][SIGNATURE]
    assert sent.places[digest].read_bytes() == (place / "bundle" / SIGNATURE).read_bytes()
    assert SIGNATURE not in sent.files["bundle-baseline"]


def test_a_signed_bundle_keeps_its_recommendation(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    choice = RecommendedVariant(variant=read_bundle(bundle).variants[0].id, kind="measured", reason="a test")
    with pytest.raises(InputError, match=r"is signed, and what it recommends with it: remove .*bundle\.sig"):
        write_recommended(bundle, choice)
    assert (bundle / MANIFEST).read_bytes() == before


def test_an_engine_is_not_built_into_a_signed_bundle(bundle: Path) -> None:
    with pytest.raises(BuildError, match="is signed, and an engine changes what was signed"):
        adopt(bundle, bundle / read_bundle(bundle).variants[0].artifact, {"engine": None})


def test_a_bundle_is_signed_again_on_the_command_line(place: Path, bundle: Path, ours: Path) -> None:
    done = call("sign", bundle, "--key", place / "ours.pem")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, str(bundle / SIGNATURE))
    signature = json.loads((bundle / SIGNATURE).read_text(encoding="utf-8"))
    assert signature["serial"] > 1_700_000_000
    der = base64.b64decode("".join(ours.read_text(encoding="utf-8").splitlines()[1:-1]))
    assert signature["key"] == hashlib.sha256(der[-32:]).hexdigest()
    read_verified(bundle, ours)


def test_what_has_changed_is_not_signed(place: Path, bundle: Path) -> None:
    before = (bundle / SIGNATURE).read_bytes()
    (bundle / read_bundle(bundle).variants[0].artifact).write_bytes(b"other")
    done = call("sign", bundle, "--key", place / "ours.pem")
    assert done.exit_code == 2
    assert "has changed since it was exported" in done.stderr
    assert (bundle / SIGNATURE).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.pem", "the private key .* cannot be read: No such file"),
        (".", "the private key .* cannot be read: Is a directory"),
        ("ours.pub.pem", "is no private ed25519 key in PEM: openssl genpkey -algorithm ed25519"),
        ("bundle/bundle.json", "is no private ed25519 key in PEM"),
        ("rsa.pem", "is no private ed25519 key in PEM"),
        ("locked.pem", "locked.pem is encrypted, and keys are read without a password: openssl pkey -in"),
    ],
)
def test_a_key_that_is_none_is_refused(place: Path, bundle: Path, name: str, says: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    if name == "rsa.pem":
        key = rsa.generate_private_key(65537, 2048)
        (place / name).write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    if name == "locked.pem":
        lock = serialization.BestAvailableEncryption(b"secret")
        (place / name).write_bytes(read_private_key(place / "ours.pem").private_bytes(pem, pkcs8, lock))
    before = (bundle / SIGNATURE).read_bytes()
    done = call("sign", bundle, "--key", place / name)
    assert done.exit_code == 2
    assert re.search(says, done.stderr)
    assert (bundle / SIGNATURE).read_bytes() == before


def test_a_private_key_is_none_to_check_by(place: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match=r"ours\.pem is no public ed25519 key in PEM: openssl pkey"):
        read_verified(bundle, place / "ours.pem")


@pytest.mark.parametrize("module", ["serialization", "asymmetric.ed25519"])
def test_without_cryptography_a_bundle_that_must_be_signed_is_not_opened(
    bundle: Path, ours: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, f"cryptography.hazmat.primitives.{module}", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'cryptography'.*pip install .*\[sign\]"):
        Session.open(bundle, verify=ours)


def test_info_says_who_signed_and_whether_that_is_taken_here(
    place: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state(folder: Path) -> str:
        return str(describe(folder)["signature"]["state"])

    write_tiny_bundle(place / "unsigned")
    assert (state(bundle), state(place / "unsigned")) == ("unchecked", "unsigned")
    monkeypatch.setenv(KEY_VARIABLE, str(place / "ours.pub.pem"))
    assert (state(bundle), state(place / "unsigned")) == ("right", "refused")
    monkeypatch.setenv(KEY_VARIABLE, str(place / "other.pub.pem"))
    done = call("info", bundle)
    assert done.exit_code == 1
    assert "signed    refused here: " in done.stdout
    assert "nothing of it is opened here: " in done.stderr
