"""Profiles on every worker of a Dask cluster: a device runs a worker, this side sends bundles and collects profiles.

    here, `measure_fleet`            worker, in the device's event loop       child process, `main`
    look(targets)                -> starts a child                         -> what the device is and has
    lacking(hashes)              -> names the files that its cache lacks
    store(hash, content)         -> checks the hash, keeps the file
    measure(key, order)          -> starts a child                         -> `profile_bundles`, as on one machine

What is asked first, `pkgutil.get_data`, is of Python itself: it tells whether the others are there. They go by name and past the scheduler (`Client.run`), so that neither its Python nor its packages
matter, and no other worker ever does what a lost one was at. What measures is a child, so that a crash of it leaves the
worker alive; it ends itself when the worker is gone. A child reads one line of JSON and answers with one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn
from uuid import uuid4

from ptsr_edge.bundle import MANIFEST, SIGNATURE, Bundle, baseline_place, check_files
from ptsr_edge.core.config import parse
from ptsr_edge.core.console import doing, say
from ptsr_edge.core.errors import InputError, JobError, PtsrError, require
from ptsr_edge.core.files import (
    DiskCache,
    check_place,
    code_digest,
    scratch_folder,
    sha256_of,
    staged_folder,
    write_json,
    write_whole,
)
from ptsr_edge.core.system import describe_environment
from ptsr_edge.evaluate.executor import CONNECT_S
from ptsr_edge.profile.profiler import (
    check_same_model,
    check_subjects,
    given_baseline,
    profile_bundles,
    read_bundles,
    runs_here,
)
from ptsr_edge.profile.schema import (
    FLEET,
    PROFILE,
    DeviceMissing,
    DeviceMissingKind,
    Fleet,
    FleetBundle,
    FleetDevice,
    FleetVariant,
    Machine,
    Profile,
)
from ptsr_edge.profile.timing import TimingConfig
from ptsr_edge.runtimes.base import find_runtime
from ptsr_edge.sign import read_verified

WATCH_S = 1.0
"""So often it is asked whether a worker is still in the cluster."""

STOP_S = 5.0
"""How long a device may take to hear that its profile is no longer wanted."""

OWN_VARIABLES = "PTSR_EDGE_PROFILE_"
"""Variables that would change a call of `profile` on a device: the options are those of the call here."""

# ---------------------------------------------------------------------------------------------
# On the device, in the worker's process

_ALONE = asyncio.Lock()
"""Two who profile on one worker take turns."""

_RUNNING: dict[str, asyncio.subprocess.Process] = {}

Answer = dict[str, Any]


def _cache() -> DiskCache:
    return DiskCache("fleet")


def _is_sound(_stream: object) -> bool:
    """Reads nothing: the cache checks an entry before it hands it out."""
    return True


async def look(targets: list[str]) -> Answer:
    """Returns the versions of Python's side here, the machine, and of `targets` those that can run on it."""
    return await _child({"op": "look", "targets": targets})


def lacking(hashes: list[str]) -> list[str]:
    """Returns the hashes of files that were not sent here yet, or are not what was sent any more."""
    cache = _cache()
    return [name for name in hashes if not cache.fetch(name, _is_sound)]


def store(sha256: str, content: bytes) -> bool:
    """Keeps a file under its hash; returns False where what arrived is something else, or it cannot be kept."""
    if hashlib.sha256(content).hexdigest() != sha256:
        return False
    cache = _cache()
    cache.store(sha256, lambda stream: _write(stream, content))
    return cache.fetch(sha256, _is_sound) is not None


def _write(stream: Any, content: bytes) -> None:
    stream.write(content)


async def measure(key: str, order: Answer) -> Answer:
    """Profiles in a child; `key` names it for `stop`. The answer has `files` (path: content in base 64) or `error`."""
    async with _ALONE:
        return await _child({"op": "measure", "order": order}, key)


async def stop(key: str) -> None:
    """Ends the child of a `measure`, if it is still at work."""
    if key in _RUNNING:
        with contextlib.suppress(ProcessLookupError):
            _RUNNING[key].terminate()


async def _child(request: Answer, key: str = "") -> Answer:
    """Asks a child process; where it ends without an answer, that is the answer."""
    package = str(Path(__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ptsr_edge.profile.fleet", env=environment, stderr=said,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        _RUNNING[key] = process
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            # It stays open: the child ends when it is closed, as it is when this process dies.
            text = await process.stdout.read()
            code = await process.wait()
        finally:
            _RUNNING.pop(key, None)
            if process.returncode is None:
                process.kill()
        if text:
            answer: Answer = json.loads(text)
            return answer
        said.seek(0)
        lines = said.read().decode("utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    if code < 0:
        return {
            "kind": "killed",
            "error": f"its process was ended by {signal.Signals(-code).name}; the last that it said: {last[:300]}",
        }
    return {
        "kind": "failed",
        "error": f"its process ended with exit code {code}; the last that it said: {last[:300]}",
    }


# ---------------------------------------------------------------------------------------------
# On the device, in the child


def main() -> int:
    """Answers one request on stdin by one line on stdout; ended when stdin is closed."""
    if sys.stdin.isatty():
        print(__doc__, file=sys.stderr)
        return 2
    # What runtimes print goes to stderr: the answer keeps the real stdout for itself.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    operations: dict[str, Callable[..., Answer]] = {"look": _look, "measure": _measure}
    try:
        answer = operations[request.pop("op")](**request)
    except InputError as error:
        answer = {"kind": "refused", "error": str(error)}
    except PtsrError as error:
        answer = {"kind": "failed", "error": str(error)}
    with contextlib.suppress(BrokenPipeError):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _end(_number: int, _frame: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)  # as an exception, so that processes and folders are cleared away


def _end_with_the_worker() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _versions() -> dict[str, str]:
    """Returns the version, for people, and the digest of the source, which has to be the same on all sides."""
    try:
        version = metadata.version("ptsr-edge")
    except metadata.PackageNotFoundError:
        version = "of a clone"
    return {"version": version, "code": code_digest()}


def _look(targets: list[str]) -> Answer:
    found = describe_environment()
    cpu = found["cpu"]
    machine = {
        "cpu": cpu["model"], "board": cpu["board"], "architecture": cpu["architecture"], "cores": cpu["cores_visible"],
        "gpus": [gpu["name"] for gpu in found["gpus"]],
        **{name: found[name] for name in ("memory_bytes", "os", "python", "packages")},
    }  # fmt: skip
    here = [name for name in targets if runs_here(name)]
    return {**_versions(), "machine": machine, "runs": here}


def _measure(order: Answer) -> Answer:
    with scratch_folder() as scratch:
        os.chdir(scratch)
        for name, files in order["files"].items():
            _lay_out(Path(name), files)
        out = Path("profile")
        profile_bundles(
            [Path(name) for name in order["bundles"]], out=out,
            baseline=Path(order["baseline"]) if order["baseline"] else None,
            data=order["data"], subjects=order["subjects"], timing=TimingConfig(**order["timing"]),
        )  # fmt: skip
        files = [path for path in sorted(out.rglob("*")) if path.is_file()]
        content = {
            path.relative_to(out).as_posix(): base64.b64encode(path.read_bytes()).decode() for path in files
        }
        os.chdir("/")
        return {"files": content}


def _lay_out(folder: Path, files: Mapping[str, str]) -> None:
    """Writes the files of a bundle, by their paths and hashes, from what is kept here."""
    cache = _cache()
    for name, sha256 in files.items():
        content = cache.fetch(sha256, lambda stream: stream.read())
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            raise JobError(f"{folder / name} is no longer among the files that were sent here")
        write_whole(folder / name, content)
    bundle = read_verified(folder)
    for variant in bundle.variants:
        check_files(folder, variant)


# ---------------------------------------------------------------------------------------------
# Here: what is to be measured


@dataclass(frozen=True)
class Shipment:
    """What is sent to devices.

    Attributes:
        files: by folder name and path in it, the SHA-256 of each file.
        places: where the file of a hash lies here.
        bundles: folder names of the bundles.
        baseline: folder name of a baseline that was named; those beside the bundles are found by their names.
        targets: of the bundles.
        first: a bundle, for what all have in common.
    """

    files: dict[str, dict[str, str]]
    places: dict[str, Path]
    bundles: list[str]
    baseline: str | None
    targets: list[str]
    first: Bundle

    def records(self) -> list[FleetBundle]:
        """Describes each folder that is sent."""
        found = []
        for name, files in self.files.items():
            lines = sorted(f"{path}\0{sha256}\n" for path, sha256 in files.items())
            found.append(
                FleetBundle(
                    name=name,
                    sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
                    files=len(files),
                    bytes=sum(self.places[sha256].stat().st_size for sha256 in files.values()),
                    is_baseline=name not in self.bundles,
                )
            )
        return found


def pack(folders: Sequence[Path], baseline: Path | None) -> Shipment:
    """Reads what is to be sent and checks it: a device should not have to say what can be said here.

    Raises:
        InputError: no bundle, one that has changed, bundles of different models or equal names, or no baseline of theirs.
    """
    bundles = read_bundles(folders)
    first = check_same_model(bundles)
    beside = [place for folder in folders if ((place := baseline_place(folder)) / MANIFEST).is_file()]
    references = [baseline] if baseline is not None else beside
    if not references:
        raise InputError(
            f"a fleet needs the full-token ViT beside the bundle, {baseline_place(folders[0])}: export the bundle with "
            "--with-baseline, or name a baseline with --baseline DIR"
        )
    for place in references:
        given_baseline(place, first)
    read = bundles | {place: read_verified(place) for place in references}
    files: dict[str, dict[str, str]] = {}
    places: dict[str, Path] = {}
    for folder, bundle in read.items():
        name = _name(folder)
        if name in files:
            raise InputError(f"two folders are called {name}: on a device, they would be one")
        for variant in bundle.variants:
            check_files(folder, variant)
        own = [one for one in (MANIFEST, SIGNATURE) if (folder / one).is_file()]
        files[name] = {one: sha256_of(folder / one) for one in own}
        files[name] |= {entry.path: entry.sha256 for variant in bundle.variants for entry in variant.files}
        places |= {sha256: folder / path for path, sha256 in files[name].items()}
    targets = [variant.target for bundle in bundles.values() for variant in bundle.variants]
    return Shipment(
        files, places, [_name(folder) for folder in folders], None if baseline is None else _name(baseline),
        list(dict.fromkeys(targets)), first,
    )  # fmt: skip


def _name(folder: Path) -> str:
    """Returns the name of a folder on devices: not that of what it may be a link to, as `baseline_place` goes by."""
    return baseline_place(folder).name.removesuffix("-baseline")


def check_fleet_out(out: Path) -> None:
    """Makes sure that a folder may take a fleet's profiles: it is new, empty, or of an earlier fleet.

    Raises:
        InputError: it is a file, holds anything else, or may not be written.
    """
    check_place(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder")
    if out.is_dir() and not (out / FLEET).is_file() and any(out.iterdir()):
        raise InputError(f"{out} holds other files than those of a fleet; name a new folder")


# ---------------------------------------------------------------------------------------------
# Here: devices


class _Worker(NamedTuple):
    """A worker as the scheduler knows it."""

    address: str
    name: str
    host: str


class _MissingError(Exception):
    """A device has no results; never leaves this module."""

    def __init__(self, kind: DeviceMissingKind, reason: str) -> None:
        super().__init__(reason)
        self.missing = DeviceMissing(kind=kind, reason=" ".join(reason.split()))


class Written:
    """`fleet.json` and the devices' folders in `out`, up to date whenever a device has answered."""

    def __init__(self, out: Path, fleet: Fleet) -> None:
        self.out = out
        self.fleet = fleet
        self._write()

    def update(self, device: FleetDevice) -> None:
        """Takes over what is known of a device now."""
        devices = [device if one.name == device.name else one for one in self.fleet.devices]
        self.fleet = self.fleet.model_copy(update={"devices": devices})
        self._write()

    def _write(self) -> None:
        write_json(self.out / FLEET, self.fleet.model_dump(mode="json", by_alias=True))


def measure_fleet(
    scheduler: str,
    folders: Sequence[Path],
    *,
    out: Path,
    command: str,
    timing: TimingConfig,
    pin: bool = False,
    baseline: Path | None = None,
    data: str | None = None,
    subjects: int | None = None,
) -> Fleet:
    """Profiles bundles on every worker of a cluster and writes `fleet.json` and a profile for each device that answers.

    A device that cannot answer does not hold up the others: the record says why. Workers on one host take turns.

    Args:
        scheduler: address, such as `tcp://10.0.0.1:8786`.
        folders: bundles of one model.
        out: folder for the record and a folder each device; that of an earlier fleet is written over.
        command: what reproduces the run, for the record.
        timing: options of the measurement on each device, `pin` aside, which only a device can check.
        pin: bind variants to the same cores.
        baseline: a bundle of the full-token ViT; by default those beside the bundles.
        data: to judge on; only what devices can make themselves (`synthetic`).
        subjects: as of `profile_bundles`.

    Raises:
        InputError: something in the call is not acceptable, or no scheduler answers; nothing was written.
        JobError: the cluster has no worker, or a file cannot be written.
        MissingExtraError: distributed is not installed.
    """
    check_fleet_out(out)
    check_subjects(subjects, data)
    shipment = pack(folders, baseline)
    order = {
        "files": shipment.files, "bundles": shipment.bundles, "baseline": shipment.baseline, "data": data,
        "subjects": subjects, "timing": asdict(timing) | {"pin": pin},
    }  # fmt: skip
    told = {
        "command": command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": shipment.first.name,
        "model_card": str(
            shipment.first.provenance.get("card", "its provenance says nothing about these weights")
        ),
        "is_quick": timing.quick,
        "bundles": shipment.records(),
    }
    return run_until_signal(_on_cluster(scheduler, shipment, order, out, told))


def run_until_signal(work: Coroutine[Any, Any, Fleet]) -> Fleet:
    """Runs in an event loop that SIGINT and SIGTERM cancel; what they are handled by comes when the loop has ended.

    A handler that raises does so wherever the loop stands, also in what Dask calls back and catches every error of.
    """
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        return asyncio.run(work)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    came: list[signal.Signals] = []

    async def cancelled_by_signals() -> Fleet:
        task = asyncio.current_task()
        assert task is not None

        def cancel(number: signal.Signals) -> None:
            came.append(number)
            task.cancel()

        for number in before:
            asyncio.get_running_loop().add_signal_handler(number, cancel, number)
        return await work

    try:
        return asyncio.run(cancelled_by_signals())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            before[came[0]](came[0], None)


async def _on_cluster(
    scheduler: str, shipment: Shipment, order: Answer, out: Path, told: Mapping[str, Any]
) -> Fleet:
    distributed = require("distributed", "scale", "profiling a fleet")
    try:
        client = await distributed.Client(
            scheduler, timeout=CONNECT_S, set_as_default=False, asynchronous=True
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler!r}: {error}") from None
    async with client:
        workers = await _workers(client)
        end = time.monotonic() + CONNECT_S
        while not workers and time.monotonic() < end:
            await asyncio.sleep(WATCH_S)
            workers = await _workers(client)
        if not workers:
            raise JobError(
                f"the Dask cluster at {scheduler} has no worker: a device runs `dask worker {scheduler}`"
            )
        names = folder_names(workers)
        waiting = DeviceMissing(kind="unfinished", reason="the run was ended before this device had answered")
        devices = [
            FleetDevice(name=names[one.address], worker=one.name, address=one.address, missing=waiting)
            for one in workers
        ]
        written = Written(out, Fleet(schema=1, **told, devices=devices))
        hosts: dict[str, list[FleetDevice]] = {}
        for one, device in zip(workers, devices, strict=True):
            hosts.setdefault(one.host, []).append(device)
        for host, several in hosts.items():
            if len(several) > 1:
                say(
                    f"{len(several)} workers are on {host}: they take turns, since one would disturb the other"
                )
        say(f"profiling {shipment.first.name} on {', '.join(device.name for device in devices)}")

        async def in_turn(several: Sequence[FleetDevice]) -> None:
            for device in several:
                await _profile_on(client, device, shipment, order, written)
                step.done += 1

        with doing("devices that have answered", len(devices)) as step:
            tasks = [asyncio.create_task(in_turn(several)) for several in hosts.values()]
            await all_done(tasks)
    return written.fleet


async def all_done(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Waits until all tasks are done, or one fails; none is at work any more when it ends, however it ends."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        # Once is not enough: what Dask awaits inside may take a cancellation for a connection that is lost.
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=2 * STOP_S)


async def _workers(client: Any) -> list[_Worker]:
    found = (await client.scheduler.identity())["workers"]
    return [_Worker(address, str(about["name"]), str(about["host"])) for address, about in found.items()]


def folder_names(workers: Sequence[_Worker]) -> dict[str, str]:
    """Returns, by address, the name of a worker's folder: its own name, or its address where it has none."""
    names: dict[str, str] = {}
    for worker in workers:
        said = worker.name.rpartition("//")[2]
        plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in said)
        plain = plain.lstrip(".") or "worker"
        taken, name, number = {other.lower() for other in names.values()} | {FLEET}, plain, 2
        while name.lower() in taken:
            name, number = f"{plain}-{number}", number + 1
        names[worker.address] = name
    return names


async def _profile_on(
    client: Any, device: FleetDevice, shipment: Shipment, order: Answer, written: Written
) -> None:
    """Profiles on one device; whatever keeps it from answering is in the record then."""
    try:
        device = await _profiled(client, device, shipment, order, written)
    except _MissingError as error:
        device = next(one for one in written.fleet.devices if one.name == device.name)
        device = device.model_copy(update={"missing": error.missing})
        say(f"{device.name} has no results ({error.missing.kind}): {error.missing.reason}")
    else:
        say(f"{device.name} has answered")
    written.update(device)


async def _profiled(
    client: Any, device: FleetDevice, shipment: Shipment, order: Answer, written: Written
) -> FleetDevice:
    def ask(function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        return _ask(client, device.address, function, *arguments)

    if await ask(pkgutil.get_data, "ptsr_edge", "profile/fleet.py") is None:
        raise _MissingError(
            "not_installed", "the worker's Python has no ptsr-edge: install it there, with a runtime"
        )
    about = _checked(await ask(look, shipment.targets))
    check_versions(about)
    try:
        device = device.model_copy(update={"machine": parse(Machine, about["machine"])})
    except InputError as error:
        raise _MissingError("failed", f"what it says of its machine cannot be read: {error}") from None
    written.update(device)
    if not about["runs"]:
        extras = dict.fromkeys(find_runtime(name).extra or name for name in shipment.targets)
        raise _MissingError(
            "no_runtime",
            f"nothing that the bundles were built for ({', '.join(shipment.targets)}) can run there: install "
            f"ptsr-edge with the extra {' or '.join(extras)}",
        )
    wanted = list(dict.fromkeys(name for files in shipment.files.values() for name in files.values()))
    for sha256 in await ask(lacking, wanted):
        content = shipment.places[sha256].read_bytes()
        if not await ask(store, sha256, content):
            raise _MissingError(
                "failed",
                f"{shipment.places[sha256].name} did not arrive as it was sent, or could not be kept there",
            )
        sent = {"sent_files": device.sent_files + 1, "sent_bytes": device.sent_bytes + len(content)}
        device = device.model_copy(update=sent)
        written.update(device)
    key = uuid4().hex
    try:
        answer = _checked(await ask(measure, key, order))
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.run(stop, key, workers=[device.address], on_error="ignore"), STOP_S)
        raise
    profile = keep_profile(written.out / device.name, answer["files"])
    return device.model_copy(update={**_of_profile(profile, shipment.bundles), "missing": None})


def _checked(answer: Answer) -> Answer:
    if "error" in answer:
        raise _MissingError(answer["kind"], str(answer["error"]))
    return answer


async def _ask(client: Any, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a function returns on a worker.

    Raises:
        _MissingError: the worker left the cluster, or it cannot call the function.
    """
    lost = _MissingError(
        "lost", f"the worker at {address} was lost before it had answered: it ended, or its network did"
    )
    call = asyncio.ensure_future(client.run(function, *arguments, workers=[address], on_error="return"))
    try:
        while not call.done():
            await asyncio.wait({call}, timeout=WATCH_S)
            if not call.done() and address not in (await client.scheduler.identity())["workers"]:
                raise lost
        answer = call.result()[address]
    except OSError:  # the scheduler itself is gone
        raise lost from None
    finally:
        call.cancel()
    if isinstance(answer, FileNotFoundError):
        raise _MissingError(
            "other_version", "the worker has a ptsr-edge without profiles of a fleet: install this one there"
        )
    if isinstance(answer, OSError):
        raise lost
    if isinstance(answer, Exception):
        raise _MissingError("failed", f"{type(answer).__name__}: {answer}")
    return answer


def check_versions(about: Mapping[str, Any]) -> None:
    """Makes sure that a device has this very ptsr-edge: results of another one are not comparable."""
    here = _versions()
    if about["code"] != here["code"]:
        theirs, ours = (f"{one['version']}, source {one['code'][:12]}" for one in (about, here))
        raise _MissingError(
            "other_version", f"the worker has ptsr-edge {theirs}; here it is {ours}: install the same on both"
        )


def keep_profile(folder: Path, files: Mapping[str, str]) -> Profile:
    """Writes the profile that came back as a folder, whole or not at all, and returns its record.

    Args:
        folder: that it is written to.
        files: contents in base 64 by path, `profile.json` and raw samples.
    """
    try:
        content = {name: base64.b64decode(text, validate=True) for name, text in files.items()}
        profile = parse(Profile, json.loads(content[PROFILE]))
    except (KeyError, ValueError) as error:
        raise _MissingError("failed", f"what came back is no profile: {error}") from None
    for name in content:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not (name == PROFILE or path.suffix == ".npz"):
            raise _MissingError("failed", f"what came back holds a file that no profile has: {name}")
    with staged_folder(folder) as stage:
        for name, written in content.items():
            write_whole(stage / name, written)
    return profile


def _of_profile(profile: Profile, bundles: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a `FleetDevice` that a profile tells."""
    shown = ("latency_ms", "ratio", "ratio_same_precision")
    named = ("id", "target", "precision", "keep_rate", "tokens", *shown)
    return {
        "created": profile.created,
        "unstable": profile.attempts[-1].unstable if profile.attempts else None,
        "variants": [
            FleetVariant(
                **{name: getattr(row, name) for name in named},
                is_baseline=row.bundle not in bundles,
                missing={name: why for name, why in row.missing.items() if name in shown},
            )
            for row in profile.variants
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
