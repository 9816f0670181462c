"""The examples run as they are shown. What the system lacks is said; DL Streamer is checked as far as it goes without."""

from __future__ import annotations

import json
import os
import re
import shlex
import site
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import gstreamer
import pytest
from bundle_data import write_tiny_bundle
from synthetic_clip import FPS, filmed, write_clip

from ptsr_edge.bundle import describe_file, write_bundle
from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.export.targets.openvino import model_info

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")
EXAMPLES = Path(__file__).parents[2] / "examples"

GVADETECT = {
    "batch-size", "device", "ie-config", "inference-interval", "inference-region", "labels", "labels-file", "model",
    "model-instance-id", "model-proc", "name", "nireq", "object-class", "pre-process-backend", "threshold",
}  # fmt: skip
"""Properties of the element as its documentation lists them: dlstreamer.github.io/elements/gvadetect."""

STAND_IN = """
class Rect:
    x = y = 0
    w = h = 112
class Region:
    def rect(self): return Rect
    def label(self): return "face"
class VideoFrame:
    def __init__(self, buffer, caps):
        assert caps.get_structure(0).get_value("width") == 112
    def regions(self):
        return iter([Region()])
"""
"""The one class of DL Streamer's Python module that the example uses, with a face that fills the frame."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("examples")
    write_tiny_bundle(folder / "bundle", (1.0, 0.5))
    return folder / "bundle", write_clip(folder / "clip.mkv")


def run(python: str, name: str, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    packages = [path, str(EXAMPLES.parent), *site.getsitepackages()] if python != sys.executable else []
    environment = os.environ | ({"PYTHONPATH": os.pathsep.join(filter(None, packages))} if packages else {})
    return subprocess.run(
        [python, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def with_gstreamer() -> None:
    lacking = gstreamer.missing(
        "Gst,GstVideo,GstApp", "filesrc,decodebin,matroskademux,avdec_h264,videoconvert,appsink"
    )
    if lacking:
        pytest.skip(
            f"no GStreamer for the system's Python ({lacking}): apt-get install python3-gi "
            "gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good gstreamer1.0-libav"
        )
    program = "import sys; print(*sys.version_info[:2])"
    there = subprocess.run([gstreamer.PYTHON, "-c", program], capture_output=True, text=True, check=True)
    if there.stdout.split() != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(
            f"the system's Python is {there.stdout.strip()}: it cannot load this environment's packages"
        )


def check_lines(done: subprocess.CompletedProcess[str], stream: str) -> None:
    """One of the events is the clip's micro-expression, to within three frames."""
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["stream"] for event in events} == {stream}
    apexes_s = [event["apex_ns"] / 1e9 for event in events]
    assert min(abs(apex_s - filmed()[2].apex_s) for apex_s in apexes_s) <= 3 / FPS


def test_embedding_takes_ten_lines_and_works(places: tuple[Path, Path]) -> None:
    done = run(sys.executable, "embed.py", *map(str, places))
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"(\w+) apex at (\d\.\d\d) s, told \d+ ms later\n", done.stdout)
    assert found, done.stdout
    assert found[1] in LABELS
    assert float(found[2]) == pytest.approx(filmed()[2].apex_s, abs=3 / FPS)
    text = (EXAMPLES / "embed.py").read_text(encoding="utf-8")
    code = [line for line in text.partition('"""\n\n')[2].splitlines() if line and not line.startswith("#")]
    assert len(code) <= 10


@pytest.mark.usefixtures("with_gstreamer")
def test_gstreamer_hands_frames_to_the_pipeline(places: tuple[Path, Path]) -> None:
    bundle, clip = map(str, places)
    source = f"filesrc location={clip} ! decodebin"
    check_lines(run(gstreamer.PYTHON, "gstreamer_appsink.py", bundle, source, "crop"), "gstreamer")


@pytest.mark.usefixtures("with_gstreamer")
def test_gstreamer_that_fails_ends_with_what_it_said(places: tuple[Path, Path]) -> None:
    source = "filesrc location=nowhere.mkv ! decodebin"
    done = run(gstreamer.PYTHON, "gstreamer_appsink.py", str(places[0]), source, "crop")
    assert done.returncode == 1
    assert "Resource not found" in done.stderr
    assert "Traceback" not in done.stderr


def dl_streamer_launch() -> str:
    text = (EXAMPLES / "dl_streamer.py").read_text(encoding="utf-8")
    (launch,) = re.findall(r'^DETECT = "(.*)"$', text, re.MULTILINE)
    return str(launch)


def test_dl_streamers_element_is_given_properties_that_it_has() -> None:
    element, *rest = dl_streamer_launch().split(" ! ")
    name, *settings = shlex.split(element)
    assert name == "gvadetect"
    assert {setting.partition("=")[0] for setting in settings} <= GVADETECT
    assert rest == ["queue"], "its documentation asks for a queue right after it"


def to_openvino(bundle: Path) -> Path:
    """The tiny bundle as one of target openvino, with the section that the export writes."""
    openvino = pytest.importorskip("openvino")
    manifest = write_tiny_bundle(bundle, (0.5,))
    (variant,) = manifest.variants
    model = openvino.convert_model(str(bundle / variant.artifact))
    for key, value in model_info(manifest.labels, manifest.preprocess).items():
        model.set_rt_info(value, ["model_info", key])
    model.set_rt_info("f32", ["ptsr_edge", "inference_precision"])
    model.set_rt_info("fp32", ["ptsr_edge", "precision"])
    openvino.save_model(model, str(bundle / "model.xml"), compress_to_fp16=False)
    files = [describe_file(bundle, bundle / name) for name in ("model.xml", "model.bin")]
    changed = variant.model_copy(update={"target": "openvino", "artifact": "model.xml", "files": files})
    write_bundle(bundle, manifest.model_copy(update={"target": "openvino", "variants": [changed]}))
    return bundle / "model.xml"


def test_the_ir_says_why_gvaclassify_cannot_feed_it(tmp_path: Path) -> None:
    """gvaclassify gives one 8-bit picture; the IR says that it takes float32 of flow, and how that is made."""
    root = ElementTree.parse(to_openvino(tmp_path / "bundle")).getroot()
    info = {node.tag: node.attrib["value"] for node in root.iterfind("rt_info/model_info/*")}
    assert info["input_dtype"] == "f32"
    assert Preprocess.model_validate_json(info["preprocess"]).channels == ("u", "v", "strain")
    assert info["labels"].split() == list(LABELS)
    assert "input_dtype f32" in (EXAMPLES / "dl_streamer.py").read_text(encoding="utf-8")


@pytest.mark.usefixtures("with_gstreamer")
def test_the_dl_streamer_example_runs_but_for_its_detector(places: tuple[Path, Path], tmp_path: Path) -> None:
    """DL Streamer is no package of a registry. Its element is replaced by one that does nothing, its module by a
    class that tells of one face; GStreamer, the IR in OpenVINO and everything else are real."""
    to_openvino(tmp_path / "bundle")
    (tmp_path / "gstgva.py").write_text(STAND_IN, encoding="utf-8")
    done = run(
        gstreamer.PYTHON, "dl_streamer.py", str(tmp_path / "bundle"), f"filesrc location={places[1]} ! decodebin",
        "face.xml", "CPU", "identity ! queue", path=str(tmp_path),
    )  # fmt: skip
    check_lines(done, "dl-streamer")
