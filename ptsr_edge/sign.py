"""Signatures of bundles: by whom a bundle was made, and that it is no older than it may be.

    ptsr-edge sign out/ptsr-tiny-cpu --key release.pem

The hashes of a manifest guard against accident: whoever changes a file can change its hash. A signature guards against a
hand. It is ed25519 (RFC 8032) by the package `cryptography`, which has wheels for the processors of edge devices and needs
one small package beside; what the OpenSSF defines for models hangs on services, or on trees of packages that a camera does not carry.

What is signed is the manifest, and through its hashes every file, without what a device adds to it: `tuned` and
`verified_on`, which choose among settings that this package knows and tell of runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click
from pydantic import Field

from ptsr_edge.bundle import MANIFEST, SIGNATURE, Bundle, check_files, read_manifest
from ptsr_edge.core.config import Record, parse, read_record
from ptsr_edge.core.console import Verb, finish, run
from ptsr_edge.core.errors import InputError, require
from ptsr_edge.core.files import write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE = "PTSR_EDGE_VERIFY"
"""Names the public key that every bundle must be signed with here."""

SERIAL_VARIABLE = "PTSR_EDGE_LEAST_SERIAL"
"""Least serial number of a signature that is taken here."""

_CONTEXT = b"ptsr-edge bundle 1\n"
"""Before what is signed, so that no signature that the key makes for something else is one of a bundle."""

_OF_DEVICES = ("tuned", "verified_on")


class Signature(Record):
    """The file `bundle.sig`.

    Attributes:
        algorithm: of the signature.
        key: SHA-256 of the 32 bytes of the public key: for people, who is told by it whose signature this claims to be.
        serial: grows from one signature to the next; by default the seconds since 1970.
        signature: of the serial and the signed part of the manifest, in base64.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    algorithm: Literal["ed25519"] = "ed25519"
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    serial: int = Field(ge=0)
    signature: str


class Demand(NamedTuple):
    """What is asked of a bundle's signature: the path of the public key that must have made it, and its least serial."""

    key: Path
    least_serial: int


def demanded(key: Path | None = None) -> Demand | None:
    """Returns what is asked of the signature of bundles that are opened here; None: none has to be signed.

    Args:
        key: that the call names; None: that of $PTSR_EDGE_VERIFY, where it is set.

    Raises:
        InputError: a variable is set to what cannot be meant; no bundle is opened then.
    """
    named, serial = os.environ.get(KEY_VARIABLE), os.environ.get(SERIAL_VARIABLE)
    if serial is not None and not re.fullmatch("[0-9]{1,18}", serial):
        raise InputError(f"${SERIAL_VARIABLE} must be a whole number, found {serial!r}")
    if key is None and named is None:
        if serial is not None:
            raise InputError(
                f"${SERIAL_VARIABLE} is set and ${KEY_VARIABLE}, the key of the signatures, is not"
            )
        return None
    if key is None and not named:
        raise InputError(
            f"${KEY_VARIABLE} is empty: it names a public key; unset it to open unsigned bundles"
        )
    return Demand(key or Path(named or ""), int(serial or 0))


def read_verified(folder: Path, key: Path | None = None) -> Bundle:
    """Reads the manifest of a bundle, whose signature is checked first where one is asked for (see `demanded`).

    Its files are checked by their hashes when they are opened, from the private copy that a runtime is given.

    Raises:
        InputError: there is no bundle, or its signature is refused (see `check_signature`).
        MissingExtraError: cryptography is not installed.
    """
    demand = demanded(key)
    # Read once: what was signed is what is taken.
    manifest = read_manifest(folder)
    if demand is not None:
        check_signature(folder, manifest, demand)
    return parse(Bundle, manifest, str(folder / MANIFEST))


def check_signature(folder: Path, manifest: Any, demand: Demand) -> Signature:
    """Returns the signature of a bundle, once it was found to be right.

    Args:
        folder: of the bundle.
        manifest: as `read_manifest` read it.
        demand: what is asked of it.

    Raises:
        InputError: the bundle is not signed, signed by another key, changed since, or older than it may be; or the key
            cannot be read.
        MissingExtraError: cryptography is not installed.
    """
    public = read_public_key(demand.key)
    record = read_signature(folder)
    if record is None:
        raise InputError(
            f"{folder} is not signed, and only what {demand.key} fits is opened here: `ptsr-edge sign` signs it"
        )
    if record.key != fingerprint(public):
        raise InputError(
            f"{folder} is signed by another key ({record.key[:16]}) than {demand.key} ({fingerprint(public)[:16]})"
        )
    try:
        public.verify(base64.b64decode(record.signature, validate=True), signed_part(manifest, record.serial))
    except (ValueError, RecursionError, _crypto("exceptions").InvalidSignature):
        raise InputError(
            f"{folder} was changed after it was signed: {SIGNATURE} does not fit {MANIFEST}; sign it again, or fetch it anew"
        ) from None
    if record.serial < demand.least_serial:
        raise InputError(
            f"{folder} is older than it may be: its serial is {record.serial}, the least is {demand.least_serial}"
        )
    return record


def read_signature(folder: Path) -> Signature | None:
    """Reads the signature of a bundle, which is not checked; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    return read_record(Signature, folder / SIGNATURE) if (folder / SIGNATURE).is_file() else None


def signed_part(manifest: Any, serial: int) -> bytes:
    """Returns what is signed: the serial and the manifest, without what a device adds, as JSON in one form only."""
    if isinstance(manifest, dict) and isinstance(manifest.get("variants"), list):
        variants = [
            {key: value for key, value in one.items() if key not in _OF_DEVICES}
            if isinstance(one, dict)
            else one
            for one in manifest["variants"]
        ]
        manifest = manifest | {"variants": variants}
    part = {"serial": serial, "manifest": manifest}
    return _CONTEXT + json.dumps(part, sort_keys=True, separators=(",", ":")).encode()


def sign_bundle(folder: Path, key: Ed25519PrivateKey, serial: int | None = None) -> Signature:
    """Signs a bundle whose files are right; its signature appears whole, in place of an earlier one.

    Args:
        folder: of the bundle.
        key: see `read_private_key`.
        serial: by default the seconds since 1970.

    Raises:
        InputError: there is no such bundle, or a file is not the one that was exported.
        JobError: the signature cannot be written; an earlier one stays.
    """
    manifest = read_manifest(folder)
    for variant in parse(Bundle, manifest, str(folder / MANIFEST)).variants:
        check_files(folder, variant)
    number = int(time.time()) if serial is None else serial
    content = key.sign(signed_part(manifest, number))
    record = Signature(
        schema=1,
        key=fingerprint(key.public_key()),
        serial=number,
        signature=base64.b64encode(content).decode(),
    )
    write_json(folder / SIGNATURE, record.model_dump(mode="json", by_alias=True))
    return record


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Reads the key to sign with: ed25519 in PEM (PKCS #8), without a password.

    Raises:
        InputError: there is no such file, or it is something else.
        MissingExtraError: cryptography is not installed.
    """
    key: Ed25519PrivateKey = _read_key(
        path, "private", lambda pem: _crypto(_PEM).load_pem_private_key(pem, None)
    )
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Reads the key to check signatures by: ed25519 in PEM (SubjectPublicKeyInfo).

    Raises:
        InputError: there is no such file, or it is something else.
        MissingExtraError: cryptography is not installed.
    """
    key: Ed25519PublicKey = _read_key(path, "public", lambda pem: _crypto(_PEM).load_pem_public_key(pem))
    return key


_MAKES = {
    "private": "openssl genpkey -algorithm ed25519 -out KEY.pem",
    "public": "openssl pkey -in KEY.pem -pubout -out PUBLIC.pem",
}


def _read_key(path: Path, which: Literal["private", "public"], load: Callable[[bytes], object]) -> Any:
    kind = getattr(_crypto("hazmat.primitives.asymmetric.ed25519"), f"Ed25519{which.title()}Key")
    try:
        key = load(path.read_bytes())
    except OSError as error:
        raise InputError(f"the {which} key {path} cannot be read: {error.strerror}") from None
    except TypeError:  # says cryptography where a password is missing
        raise InputError(
            f"{path} is encrypted, and keys are read without a password: openssl pkey -in {path} -out PLAIN.pem"
        ) from None
    except (ValueError, _crypto("exceptions").UnsupportedAlgorithm):
        key = None
    if not isinstance(key, kind):
        raise InputError(f"{path} is no {which} ed25519 key in PEM: {_MAKES[which]}")
    return key


_PEM = "hazmat.primitives.serialization"


def _crypto(module: str) -> Any:
    return require(f"cryptography.{module}", "sign", "signing bundles and checking signatures")


def fingerprint(key: Ed25519PublicKey) -> str:
    """Returns the SHA-256 of the 32 bytes of a public key, in hexadecimal digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


@click.command(cls=Verb, epilog="Example: ptsr-edge sign out/ptsr-tiny-cpu --key release.pem")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), required=True,
              help="The private key: ed25519 in PEM, as `openssl genpkey -algorithm ed25519` makes one.")  # fmt: skip
@click.option(
    "--serial", type=click.IntRange(0, 10**18 - 1), help="Of this signature; default the seconds since 1970."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(bundle: Path, key: Path, serial: int | None, as_json: bool) -> None:
    """Sign a bundle, so that devices can tell who made it and that it is not an older one."""
    record = sign_bundle(bundle, read_private_key(key), serial)
    line = f"signed by key {record.key[:16]}, serial {record.serial}"
    finish(record.model_dump(mode="json", by_alias=True), [line, str(bundle / SIGNATURE)], as_json)


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.sign")
