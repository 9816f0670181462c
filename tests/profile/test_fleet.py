"""A fleet: what is refused before anything is sent, and devices in networks of their own, of which some are lost on the way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bundle_data import write_tiny_bundle
from click.testing import CliRunner, Result
from dask_cluster import Device, device_cluster, why_no_networks

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.profile import fleet
from ptsr_edge.profile.cli import main
from ptsr_edge.profile.schema import Fleet, read_fleet, read_profile

OPTIONS = ("--quick", "--processes", "1", "--duration-s", "0.05")


def write_fleet_pair(place: Path) -> Path:
    """A bundle of two budgets with the ViT beside it, as `export --with-baseline` leaves them."""
    write_tiny_bundle(place / "pi")
    write_tiny_bundle(place / "pi-baseline", [1.0], kind="vit")
    return place / "pi"


# ---------------------------------------------------------------------------------------------
# Before anything is sent


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments], prog_name="ptsr-edge profile")


def _changed(place: Path) -> list[object]:
    (place / "pi-baseline/vit-test-cpu-fp32-k16.onnx").write_bytes(b"other")
    return ["--bundle", place / "pi"]


def _of_one_name(place: Path) -> list[object]:
    write_tiny_bundle(place / "other/pi")
    return ["--bundle", place / "pi", "--bundle", place / "other/pi"]


def _without_baseline(place: Path) -> list[object]:
    write_tiny_bundle(place / "alone")
    return ["--bundle", place / "alone"]


def _full_out(place: Path) -> list[object]:
    (place / "full").mkdir()
    (place / "full/thesis.tex").write_text("years of work")
    return ["--bundle", place / "pi", "--out", place / "full"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_changed, "has changed since it was exported"),
        (_of_one_name, "two folders are called pi"),
        (_without_baseline, "alone-baseline: export the bundle with --with-baseline"),
        (_full_out, "holds other files than those of a fleet"),
        (lambda place: ["--bundle", place / "pi", "--baseline", place / "pi"], "the baseline of ptsr-test is"),
        (lambda place: ["--bundle", place / "pi", "--data", "casme2", "--root", place], "data in folders stay here"),
        (lambda place: ["--bundle", place / "pi", "--data", "synthetik"], "unknown data 'synthetik'"),
        (lambda place: ["--bundle", place / "pi", "--checkpoint", place / "x"], "--checkpoint compares selections"),
        (lambda place: ["--bundle", place / "pi", "--data", "synthetic", "--control-seeds", 2],
         "--control-seeds compares selections"),
        (lambda place: ["--bundle", place / "pi", "--subjects", 5], "--subjects is a number of people"),
        (lambda place: ["--bundle", place / "pi"], "no Dask scheduler answers at 'tcp://127.0.0.1:1'"),
    ],
)  # fmt: skip
def test_wrong_calls_give_one_line_and_exit_code_2(
    prepare: Callable[[Path], list[object]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "scheduler" in message:
        pytest.importorskip("distributed")
        monkeypatch.setattr(fleet, "CONNECT_S", 1.0)
    write_fleet_pair(tmp_path)
    arguments = prepare(tmp_path)
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path / "f"]
    result = run("--fleet", "tcp://127.0.0.1:1", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "f").exists()


def test_a_baseline_is_found_on_a_device_as_it_is_here_beside_a_link(tmp_path: Path) -> None:
    write_fleet_pair(tmp_path / "elsewhere")
    for name in ("now", "now-baseline"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / name.replace("now", "pi"))
    assert list(fleet.pack([tmp_path / "now"], None).files) == ["now", "now-baseline"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pi5", "Pi5"], ["pi5", "Pi5-2"]),  # one folder, where a file system ignores case
        (["tcp://10.0.0.1:4000"], ["10.0.0.1-4000"]),
        (["../up", "..", "fleet.json"], ["-up", "worker", "fleet.json-2"]),
        (["küche am Hof"], ["küche-am-Hof"]),
    ],
)
def test_a_device_has_a_folder_of_its_own(names: list[str], expected: list[str]) -> None:
    workers = [fleet._Worker(str(place), name, "host") for place, name in enumerate(names)]
    assert list(fleet.folder_names(workers).values()) == expected


def test_a_file_that_did_not_arrive_whole_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path))
    name = hashlib.sha256(b"content").hexdigest()
    assert fleet.store(name, b"contend") is False
    assert fleet.lacking([name]) == [name]
    assert fleet.store(name, b"content") is True
    assert fleet.lacking([name]) == []
    (kept,) = tmp_path.rglob("*.entry")
    kept.write_bytes(kept.read_bytes()[:-1] + b"d")
    assert fleet.lacking([name]) == [name]


@pytest.mark.parametrize("name", ["../out.npz", "/out.npz", "samples/run.sh"])
def test_a_device_writes_into_its_own_folder_only(name: str, tmp_path: Path) -> None:
    record = (Path(__file__).parents[2] / "profiles/intel-xeon-2-cores/ptsr-tiny/profile.json").read_bytes()
    files = {"profile.json": base64.b64encode(record).decode(), name: ""}
    with pytest.raises(fleet._MissingError, match="a file that no profile has"):
        fleet.keep_profile(tmp_path / "device", files)
    assert list(tmp_path.iterdir()) == []


def test_what_came_back_has_to_be_a_profile(tmp_path: Path) -> None:
    with pytest.raises(fleet._MissingError, match="what came back is no profile"):
        fleet.keep_profile(tmp_path / "device", {"profile.json": base64.b64encode(b"{}").decode()})
    assert list(tmp_path.iterdir()) == []


def test_a_pair_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        fleet.pack([tmp_path / "nothing"], None)


# ---------------------------------------------------------------------------------------------
# Devices

WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] == GONE else PathFinder.find_spec(name, path, target)

# The installed clone is found by a finder of its own.
others = [finder for finder in sys.meta_path if "ditable" not in repr(finder)]
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in others]
"""
"""A `sitecustomize` with which Python finds all but one package."""

LIMIT_S = 120.0


def without(folder: Path, package: str) -> dict[str, str]:
    """The environment of a device that has no such package."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"GONE = {package!r}\n{WITHOUT}")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(fleet.__file__).parents[2])])}


@dataclass(frozen=True)
class Cluster:
    """Devices, the bundle, and how a run over them went."""

    folder: Path
    scheduler: str
    devices: dict[str, Device]
    first: subprocess.CompletedProcess[str]
    record: Fleet


def call(scheduler: str, *options: str) -> list[str]:
    words = ["profile", "--bundle", "pi", "--fleet", scheduler, "--out", "fleet"]
    return [sys.executable, "-m", "ptsr_edge", *words, *(options or OPTIONS)]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, f"not in {LIMIT_S:g} s: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Five devices, and a first run over them: while they measure, one is killed and one loses its network."""
    pytest.importorskip("distributed")
    if why := why_no_networks():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("fleet")
    write_fleet_pair(folder)
    environments = {
        "kitchen": {},
        "attic": {},
        "cellar": {},
        "bare": without(folder / "no-runtime", "onnxruntime"),
        "empty": without(folder / "no-package", "ptsr_edge"),
    }
    with device_cluster(folder, environments) as (scheduler, devices):
        _wait_for_workers(scheduler, len(devices))
        running = subprocess.Popen(
            call(scheduler), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_until(devices["attic"].measures, "the attic measures")
        devices["attic"].process.kill()
        wait_until(devices["cellar"].measures, "the cellar measures")
        devices["cellar"].cut()
        out, err = running.communicate(timeout=LIMIT_S)
        done = subprocess.CompletedProcess(running.args, running.returncode, out, err)
        yield Cluster(folder, scheduler, devices, done, read_fleet(folder / "fleet"))


def _wait_for_workers(scheduler: str, count: int) -> None:
    from distributed import Client

    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=LIMIT_S)


def sizes(folder: Path) -> list[int]:
    """The sizes of the different files that are to be sent, from the manifests."""
    found = {}
    for name in ("pi", "pi-baseline"):
        paths = [folder / name / "bundle.json"]
        paths += [folder / name / one.path for v in read_bundle(folder / name).variants for one in v.files]
        found |= {sha256_of(path): path.stat().st_size for path in paths}
    return list(found.values())


@pytest.mark.slow
def test_devices_that_are_lost_do_not_end_the_others(cluster: Cluster) -> None:
    assert cluster.first.returncode == 1, cluster.first.stderr
    kinds = {one.name: one.missing.kind if one.missing else None for one in cluster.record.devices}
    assert kinds == {
        "kitchen": None,
        "attic": "lost",
        "cellar": "lost",
        "bare": "no_runtime",
        "empty": "not_installed",
    }
    last = cluster.first.stderr.splitlines()[-1]
    assert last.startswith("python -m ptsr_edge profile: 4 of 5 devices have no results: ")
    assert "attic (lost)" in last
    assert cluster.first.stdout.splitlines()[-1] == "fleet/fleet.json"
    bare = next(one for one in cluster.record.devices if one.name == "bare")
    assert bare.missing is not None
    assert "(cpu) can run there: install ptsr-edge with the extra ort" in bare.missing.reason


@pytest.mark.slow
def test_the_device_that_is_left_has_its_whole_profile(cluster: Cluster) -> None:
    profile = read_profile(cluster.folder / "fleet/kitchen")
    kitchen = next(one for one in cluster.record.devices if one.name == "kitchen")
    assert [row.id for row in kitchen.variants] == [row.id for row in profile.variants]
    assert [row.latency_ms for row in kitchen.variants] == [row.latency_ms for row in profile.variants]
    assert [row.is_baseline for row in kitchen.variants] == [True, False, False]
    assert all(
        (cluster.folder / "fleet/kitchen" / str(row.raw_samples)).is_file() for row in profile.variants
    )
    assert profile.method["quick"] is True
    assert str(cluster.folder) not in (cluster.folder / "fleet/kitchen/profile.json").read_text()
    assert sorted(path.name for path in (cluster.folder / "fleet").iterdir()) == ["fleet.json", "kitchen"]


@pytest.mark.slow
def test_what_a_killed_worker_was_at_has_ended_with_it(cluster: Cluster) -> None:
    mark = f"PTSR_EDGE_CACHE={cluster.folder / 'attic-cache'}".encode()
    wait_until(lambda: not _processes_with(mark), "the attic's processes have ended")


def _processes_with(mark: bytes) -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [place.parent.name] if mark in place.read_bytes().split(b"\0") else []
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
def test_what_a_device_has_is_not_sent_again(cluster: Cluster) -> None:
    kitchen = next(one for one in cluster.record.devices if one.name == "kitchen")
    expected = sizes(cluster.folder)
    assert (kitchen.sent_files, kitchen.sent_bytes) == (len(expected), sum(expected))
    again = subprocess.run(
        call(cluster.scheduler), cwd=cluster.folder, capture_output=True, text=True, check=False
    )
    record = read_fleet(cluster.folder / "fleet")
    kinds = {one.name: one.missing.kind if one.missing else None for one in record.devices}
    assert kinds["kitchen"] is None, again.stderr
    assert "attic" not in kinds
    assert [(one.sent_files, one.sent_bytes) for one in record.devices if one.name == "kitchen"] == [(0, 0)]


def test_a_device_that_overhears_the_end_of_a_run_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "STOP_S", 0.01)
    heard = []

    async def overhears() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                heard.append("end")
        raise ValueError("not reached before it was told twice")

    async def ended() -> None:
        tasks = [asyncio.create_task(overhears())]
        run = asyncio.create_task(fleet.all_done(tasks))
        await asyncio.sleep(0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert tasks[0].done()
        assert isinstance(tasks[0].exception(), ValueError)

    asyncio.run(ended())
    assert heard == ["end", "end"]


STRUCK = """
import asyncio, contextlib, os, signal, sys
from ptsr_edge.profile.fleet import run_until_signal

number = signal.Signals[sys.argv[1]]

def raises(came, _frame):
    raise KeyboardInterrupt(came)

def called_back():
    with contextlib.suppress(BaseException):  # as libraries do
        os.kill(os.getpid(), number)

async def work():
    asyncio.get_running_loop().call_soon(called_back)
    await asyncio.sleep(60)
    print("the signal was lost")

signal.signal(number, raises)
try:
    run_until_signal(work())
except KeyboardInterrupt as error:
    print(*error.args, signal.getsignal(number) is raises)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_wherever_its_event_loop_stands(number: signal.Signals) -> None:
    run = subprocess.run([sys.executable, "-c", STRUCK, number.name], capture_output=True, text=True, timeout=LIMIT_S)  # fmt: skip
    assert (run.stdout, run.stderr) == (f"{int(number)} True\n", "")


@pytest.mark.slow
def test_the_end_of_a_run_ends_what_devices_are_at(cluster: Cluster) -> None:
    kitchen = cluster.devices["kitchen"]
    running = subprocess.Popen(
        call(cluster.scheduler, "--duration-s", "60"), cwd=cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite in the background of a shell has SIGINT ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_until(kitchen.measures, "the kitchen measures")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130, err
    assert err.splitlines()[-1].endswith(
        "ended by SIGINT: fleet/fleet.json has the devices that had answered; the same command starts anew"
    )
    wait_until(kitchen.is_idle, "the kitchen is idle")
    record: dict[str, Any] = json.loads((cluster.folder / "fleet/fleet.json").read_text())
    kinds = {one["name"]: one["missing"]["kind"] for one in record["devices"] if one["missing"]}
    assert kinds["kitchen"] == "unfinished"
