"""Signatures of bundles: by whom a bundle was made, and that it is no older than it may be.

The hashes of a manifest guard against accident: whoever changes a file can change its hash. A signature guards against a
hand. It is ed25519 (RFC 8032) by the package `cryptography`, which has wheels for the processors of edge devices and needs
nothing else; the formats of the OpenSSF for models hang on services or on trees of packages that a camera does not carry.

What is signed is the manifest, and through its hashes every file, without what a device may add to it: `tuned` and
`verified_on`, which choose among settings that the package knows and tell of runs. `recommended` is signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field

from ptsr_edge.bundle import MANIFEST, Bundle, check_files, read_bundle
from ptsr_edge.core.config import Record, parse, read_record
from ptsr_edge.core.console import Verb, finish, run
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import check_file, write_json, write_whole

SIGNATURE = "bundle.sig"

KEY_VARIABLE = "PTSR_EDGE_VERIFY"
"""Path of the public key that every bundle must be signed with on this device."""

SERIAL_VARIABLE = "PTSR_EDGE_LEAST_SERIAL"
"""Least serial number of a signature that is taken on this device."""

_OF_DEVICES = ("tuned", "verified_on")


class Signature(Record):
    """The file `bundle.sig`.

    Attributes:
        algorithm: of the signature.
        key: SHA-256 of the raw public key, in hexadecimal digits: whose signature it is, for messages.
        serial: grows from one signature to the next: by default the seconds since 1970.
        signature: over the serial and the signed part of the manifest, in base64.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    algorithm: Literal["ed25519"] = "ed25519"
    key: str
    serial: int = Field(ge=0)
    signature: str


def signed_part(manifest: dict[str, Any], serial: int) -> bytes:
    """Returns what is signed: canonical JSON of the serial and the manifest, without what a device may add."""
    variants = [
        {key: value for key, value in variant.items() if key not in _OF_DEVICES} if isinstance(variant, dict) else variant
        for variant in manifest.get("variants", [])
    ]
    part = {"serial": serial, "manifest": manifest | {"variants": variants}}
    return json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sign_bundle(folder: Path, key: Path, serial: int | None = None) -> Signature:
    """Signs a bundle; an earlier signature is replaced.

    Args:
        folder: of the bundle.
        key: the private key, as `make_key` wrote it or any ed25519 key in PEM without a password.
        serial: by default the seconds since 1970.

    Raises:
        InputError: there is no such bundle or key, or a file is not the one that was exported.
        MissingExtraError: cryptography is not installed.
        JobError: the signature cannot be written.
    """
    bundle = read_bundle(folder)
    for variant in bundle.variants:
        check_files(folder, variant)
    private = _private_key(key)
    number = int(time.time()) if serial is None else serial
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    signature = private.sign(signed_part(manifest, number))
    record = Signature(
        schema=1, key=_fingerprint(private.public_key()), serial=number, signature=base64.b64encode(signature).decode()
    )
    write_json(folder / SIGNATURE, record.model_dump(mode="json", by_alias=True))
    return record


def read_verified(folder: Path, key: Path | None = None, least_serial: int | None = None) -> Bundle:
    """Reads the manifest of a bundle, once its signature was found to be right; without a key, any manifest.

    Args:
        folder: of the bundle.
        key: the public key; None: that of $PTSR_EDGE_VERIFY, where it is set.
        least_serial: of the signature; None: $PTSR_EDGE_LEAST_SERIAL, where it is set.

    Raises:
        InputError: there is no bundle or no signature; it is another's, of a changed manifest, or too old.
        MissingExtraError: cryptography is not installed.
    """
    chosen = key or (Path(os.environ[KEY_VARIABLE]) if os.environ.get(KEY_VARIABLE) else None)
    if chosen is None:
        return read_bundle(folder)
    read_bundle(folder)  # what is no bundle is told as such
    public = _public_key(chosen)
    if not (folder / SIGNATURE).is_file():
        raise InputError(f"{folder} is not signed, and {chosen} asks for a signature: `ptsr-edge sign` makes one")
    record = read_record(Signature, folder / SIGNATURE)
    if record.key != _fingerprint(public):
        raise InputError(f"{folder} is signed by another key ({record.key[:16]}...) than {chosen}")
    # Read once: what is checked is what is parsed.
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    try:
        public.verify(base64.b64decode(record.signature, validate=True), signed_part(manifest, record.serial))
    except (binascii.Error, require("cryptography.exceptions", "sign", "verifying a bundle").InvalidSignature):
        raise InputError(f"{folder} was changed after it was signed: its signature does not fit {MANIFEST}") from None
    least = _least_serial() if least_serial is None else least_serial
    if record.serial < least:
        raise InputError(f"{folder} is older than it may be: its serial is {record.serial}, the least is {least}")
    return parse(Bundle, manifest, str(folder / MANIFEST))


def _least_serial() -> int:
    text = os.environ.get(SERIAL_VARIABLE, "0")
    if not text.isascii() or not text.isdigit():
        raise InputError(f"${SERIAL_VARIABLE} must be a whole number, found {text!r}")
    return int(text)


def make_key(path: Path) -> Path:
    """Writes a new private key, for its owner alone, and the public one beside it; returns the path of the second.

    Raises:
        InputError: one of the files is there already, or cannot be written.
        MissingExtraError: cryptography is not installed.
    """
    public = path.with_name(f"{path.name}.pub")
    for one in (path, public):
        check_file(one)
        if one.exists():
            raise InputError(f"{one} is there already: a key is not overwritten")
    serialization = _serialization()
    private = require(_ED25519, "sign", _PURPOSE).Ed25519PrivateKey.generate()
    content = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(content)
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}") from error
    write_whole(
        public,
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )
    return public


_PURPOSE = "signing and verifying bundles"

_ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization", "sign", _PURPOSE)


def _private_key(path: Path) -> Any:
    return _key(path, "private", lambda content: _serialization().load_pem_private_key(content, None), "Ed25519PrivateKey")


def _public_key(path: Path) -> Any:
    return _key(path, "public", lambda content: _serialization().load_pem_public_key(content), "Ed25519PublicKey")


def _key(path: Path, what: str, load: Any, kind: str) -> Any:
    try:
        found = load(path.read_bytes())
    except OSError as error:
        raise InputError(f"the {what} key {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, getattr(require(_ED25519, "sign", _PURPOSE), kind)):
        raise InputError(f"{path} is no {what} ed25519 key in PEM without a password: `ptsr-edge sign --new-key` makes one")
    return found


def _fingerprint(public: Any) -> str:
    serialization = _serialization()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


@click.command(cls=Verb, epilog="Example: ptsr-edge sign out/ptsr-tiny-cpu --key release.pem")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--key", type=click.Path(path_type=Path), help="The private key to sign with.")
@click.option("--serial", type=click.IntRange(min=0), help="Of this signature; by default the seconds since 1970.")
@click.option("--verify", type=click.Path(path_type=Path), help="Sign nothing: check the signature by this public key.")
@click.option("--new-key", type=click.Path(path_type=Path), help="Write a new private key there, the public one beside it (.pub).")
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(
    bundle: Path | None, key: Path | None, serial: int | None, verify: Path | None, new_key: Path | None, as_json: bool
) -> None:
    """Sign a bundle, check its signature, or make a pair of keys."""
    if new_key is not None:
        if (bundle, key, serial, verify) != (None, None, None, None):
            raise InputError("--new-key makes a pair of keys and takes nothing else")
        public = make_key(new_key)
        finish({"private": str(new_key), "public": str(public)}, [str(new_key), str(public)], as_json)
        return
    if bundle is None or (key is None) == (verify is None):
        raise InputError("give a bundle, and --key FILE to sign it or --verify FILE to check it; or --new-key FILE")
    if verify is not None:
        if serial is not None:
            raise InputError("--serial goes with --key")
        read_verified(bundle, verify)
        for variant in read_bundle(bundle).variants:
            check_files(bundle, variant)
        record = read_record(Signature, bundle / SIGNATURE)
        line = f"{bundle} is as it was signed (serial {record.serial})"
    else:
        assert key is not None
        record = sign_bundle(bundle, key, serial)
        line = str(bundle / SIGNATURE)
    finish(record.model_dump(mode="json", by_alias=True), [line], as_json)


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.signing")
