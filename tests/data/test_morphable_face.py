"""The packed face model: what the public folder holds comes back, and what is no such folder or file is told."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from face_model import shell_face, write_packed_face

from ptsr_edge.core.config import CropName, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data import morphable_face
from ptsr_edge.data.cli import main
from ptsr_edge.data.datasets import load
from ptsr_edge.data.morphable_face import (
    CLASS_SHARES,
    FILE,
    HALF_EYES_X,
    IDENTITIES,
    LANDMARKS,
    MOUTH_Y,
    PEAK,
    POLYGONS,
    RECIPES,
    UNITS,
    VERTICES,
    MorphableFace,
    draw_motion,
    pack_facekit,
    read_morphable_face,
    render_people,
    unit_moves,
)
from ptsr_edge.data.synthetic_clips import render_subject
from ptsr_edge.vision.flow import CLOSE

RNG = np.random.default_rng(0)
NEUTRAL = RNG.normal(0, 5, (VERTICES, 3)).astype(np.float32)
QUADS = np.stack([np.arange(POLYGONS) % (VERTICES - 3) + corner for corner in range(4)], axis=1)
MOVEMENTS = ("browDown_L", "browDown_R", "jawOpen")


def write_mesh(path: Path, moved: np.ndarray, quads: np.ndarray = QUADS) -> None:
    """As ICT-FaceKit's: further vertices and polygons follow on those of the face."""
    vertices = [f"v {x:.15f} {y:.15f} {z:.15f}" for x, y, z in NEUTRAL.astype(np.float64) + moved]
    faces = [f"f {' '.join(f'{corner + 1}/{corner + 1}/1' for corner in quad)}" for quad in quads]
    text = [
        "mtllib x.mtl",
        *vertices,
        "v 9 9 9",
        "vt 0.5 0.5",
        "usemtl face",
        *faces,
        f"f {VERTICES + 1}/1 1/1 2/1",
    ]
    path.write_text("\n".join(text) + "\n", encoding="ascii")


@pytest.fixture(scope="module")
def facekit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("facekit")
    (root / "FaceXModel").mkdir()
    write_mesh(root / "FaceXModel" / "generic_neutral_mesh.obj", np.zeros(3))
    shared = root / "identity.obj"
    write_mesh(shared, np.array([0.5, 0, 0]))
    for number in range(IDENTITIES):
        (root / "FaceXModel" / f"identity{number:03d}.obj").hardlink_to(shared)
    for place, name in enumerate(MOVEMENTS):
        write_mesh(root / "FaceXModel" / f"{name}.obj", np.array([0, place + 1, -0.25]))
    write_mesh(root / "FaceXModel" / "PupilDilate_L.obj", np.ones(3))
    return root


def test_what_the_folder_holds_comes_back(facekit: Path) -> None:
    done = CliRunner().invoke(main, ["facekit", "--root", str(facekit)])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, str(facekit / FILE))
    face = read_morphable_face(facekit)
    np.testing.assert_array_equal(face.neutral, NEUTRAL)
    np.testing.assert_array_equal(face.faces, QUADS)
    assert face.landmarks.tolist() == list(LANDMARKS)
    assert face.names == MOVEMENTS
    assert face.identity.shape == (IDENTITIES, VERTICES, 3)
    np.testing.assert_allclose(face.identity[7], np.broadcast_to([0.5, 0, 0], (VERTICES, 3)), atol=1e-5)
    np.testing.assert_allclose(face.expression[2], np.broadcast_to([0, 3, -0.25], (VERTICES, 3)), atol=2e-3)


def test_the_folder_of_meshes_itself_will_do(facekit: Path) -> None:
    path = pack_facekit(facekit / "FaceXModel")
    assert path == facekit / "FaceXModel" / FILE
    assert read_morphable_face(facekit / "FaceXModel").names == MOVEMENTS


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda meshes: (meshes / "generic_neutral_mesh.obj").unlink(),
            "holds no generic_neutral_mesh.obj; accepted",
        ),
        (lambda meshes: (meshes / "identity099.obj").unlink(), "holds no identity099.obj"),
        (lambda meshes: [(meshes / f"{name}.obj").unlink() for name in MOVEMENTS], "holds no browDown_L.obj"),
        (
            lambda meshes: (meshes / "jawOpen.obj").write_text("v 1 2 3\n"),
            "1 vertices and 0 quadrangles of a face",
        ),
        (
            lambda meshes: (meshes / "jawOpen.obj").write_text("v 1 2\n"),
            r"jawOpen.obj is no mesh of ICT-FaceKit",
        ),
        (lambda meshes: (meshes / "jawOpen.obj").write_text("f 1/1 2/1 3/1\n"), "is no part of the face"),
        (
            lambda meshes: (meshes / "jawOpen.obj").write_bytes(b"\xff\xfe"),
            r"jawOpen.obj is no mesh of ICT-FaceKit",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    facekit: Path, tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    meshes = tmp_path / "FaceXModel"
    meshes.mkdir()
    for path in (facekit / "FaceXModel").glob("*.obj"):
        (meshes / path.name).hardlink_to(path)
    if (meshes / "jawOpen.obj").stat().st_nlink > 1:  # what is spoilt is this copy alone
        content = (meshes / "jawOpen.obj").read_bytes()
        (meshes / "jawOpen.obj").unlink()
        (meshes / "jawOpen.obj").write_bytes(content)
    spoil(meshes)
    with pytest.raises(InputError, match=says):
        pack_facekit(tmp_path)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda parts: parts.pop("neutral"), "is no packed face model"),
        (lambda parts: parts.update(landmarks68=np.full(68, VERTICES)), "landmarks68 cannot be"),
        (lambda parts: parts.update(faces=np.zeros((3, 3))), "faces cannot be"),
        (lambda parts: parts.update(expression_names=np.array(["one"])), "expression cannot be"),
        (lambda parts: parts.update(neutral=np.full((VERTICES, 3), np.nan)), "a number cannot be"),
        (lambda parts: parts.update(neutral=np.full((VERTICES, 3), 1e30, np.float32)), "a number cannot be"),
        (lambda parts: parts.update(identity_scale=np.full(IDENTITIES, np.inf)), "a number cannot be"),
        (lambda parts: parts.update(neutral=np.array(1.0)), "neutral.* cannot be"),
        (
            lambda parts: parts.update(identity=np.zeros((0, VERTICES, 3)), identity_scale=np.zeros(0)),
            "identity cannot be",
        ),
    ],
)
def test_a_file_that_is_no_packed_model_is_refused(
    facekit: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], says: str
) -> None:
    pack_facekit(facekit)
    with np.load(facekit / FILE) as file:
        parts = {name: file[name] for name in file.files}
    change(parts)
    np.savez(tmp_path / FILE, **parts)
    with pytest.raises(InputError, match=says):
        read_morphable_face(tmp_path)


def test_without_the_file_the_way_to_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no ict_face\.npz: `ptsr-edge data facekit --root ICT-FaceKit`"
    ):
        read_morphable_face(tmp_path)
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match="is no packed face model"):
        read_morphable_face(tmp_path)


@pytest.mark.parametrize(
    "member",
    [b"", b"no array", b"\x93NUMPY\x01\x00\x06\x00'''abc", b"\x93NUMPY\x01\x00\x06\x00{'a'\n)"],
    ids=["nothing", "no array", "a text that does not end", "a record that does not end"],
)
def test_a_member_that_is_no_array_is_told(tmp_path: Path, member: bytes) -> None:
    write_packed_face(tmp_path / "face")
    read_morphable_face(tmp_path / "face")
    path = tmp_path / "face" / FILE
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    for name in ("neutral.npy", "identity.npy", "expression_names.npy"):
        with zipfile.ZipFile(path, "w") as file:
            for other, content in members.items():
                file.writestr(other, member if other == name else content)
        with pytest.raises(InputError, match="is no packed face model"):
            read_morphable_face(tmp_path / "face")


def test_a_damaged_stream_of_deflate_is_told(tmp_path: Path) -> None:
    write_packed_face(tmp_path / "face")
    path = tmp_path / "face" / FILE
    content = path.read_bytes()
    path.write_bytes(
        content[:60] + b"\xff" * 8 + content[68:]
    )  # behind the first member's header of 30 bytes and its name
    with pytest.raises(InputError, match="is no packed face model"):
        read_morphable_face(tmp_path / "face")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / FILE, neutral=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="is no packed face model"):
        read_morphable_face(tmp_path)


@pytest.fixture(scope="module")
def face() -> MorphableFace:
    return shell_face()


@pytest.fixture
def straight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody looks into the camera, and is cropped and moves as everybody else."""
    monkeypatch.setattr(morphable_face, "POSE_SD", (0.0, 0.0))
    for name in ("CROP_SD", "GAIN_SD", "IDENTITY_SD"):
        monkeypatch.setattr(morphable_face, name, 0.0)


@pytest.mark.usefixtures("straight")
@pytest.mark.parametrize("crop", ["close", "wide"])
def test_units_lie_where_the_crop_says_and_point_where_they_move(face: MorphableFace, crop: CropName) -> None:
    motion = draw_motion(face, unit_moves(face), 112, crop, np.random.default_rng(0))
    x0, y0, x1, y1 = (0, 0, 1, 1) if crop == "close" else CLOSE
    smile = motion.units[UNITS.index(12)]
    assert [side[..., 1].min() < -3 for side in smile] == [True, True]  # up, and y points down
    row, column = np.unravel_index(smile[1][..., 1].argmin(), (112, 112))
    # The mouth's corner is 2 of the eyes' 3 cm off the middle, on the line of the mouth.
    assert row / 112 == pytest.approx(y0 + (y1 - y0) * MOUTH_Y, abs=0.02)
    assert column / 112 == pytest.approx((x0 + x1) / 2 + (x1 - x0) * HALF_EYES_X * 2 / 3, abs=0.02)
    assert smile[1][row, column, 0] > 0 > smile[0][row, 111 - column, 0]  # outwards
    if crop == "close":  # the wide crop is not symmetric
        np.testing.assert_allclose(smile[1][..., 1], smile[0][:, ::-1, 1], atol=0.05)


@pytest.mark.usefixtures("straight")
def test_a_shift_of_the_head_moves_near_parts_more(face: MorphableFace) -> None:
    """By the pinhole: at distance D a point z nearer moves D / (D - z) times as far as one in the middle's plane."""
    motion = draw_motion(face, unit_moves(face), 112, "close", np.random.default_rng(1))
    along_x = motion.head[3]
    nose, cheek = along_x[53, 56, 0], along_x[53, 10, 0]
    assert nose > cheek > 0
    assert abs(along_x[..., 1]).max() < 1e-4
    # The picture's 1 cm at the eyes, which half the distance between is 3 cm and .275 of 112 pixels.
    assert along_x[29, 26, 0] == pytest.approx(0.275 * 112 / 3, rel=0.02)


def test_a_clip_is_the_same_alone_and_among_others(face: MorphableFace) -> None:
    flows, labels, units = render_people(face, [3, 5], 4, 28, "close")
    alone, own, shown = render_people(face, [5], 4, 28, "close")
    np.testing.assert_array_equal(flows[4:], alone)
    assert (labels[4:].tolist(), units[4:]) == (own.tolist(), shown)
    other, _, _ = render_people(face, [5], 4, 28, "close", seed=1)
    assert not np.array_equal(alone, other)


def test_rendered_and_drawn_people_are_one_data_set(tmp_path: Path) -> None:
    write_packed_face(tmp_path / "face")
    packed = read_morphable_face(tmp_path / "face")
    people = ["ict-face/003", "synthetic/161"]
    both = load("faces", tmp_path / "face", image_size=28, subjects=people, limit=3)
    assert (both.source, both.subject_names, len(set(both.names))) == ("faces", people, 6)
    flows, labels, _ = render_people(packed, [3], 3, 28, "wide")
    drawn = both.of_subjects(["ict-face/003"])
    np.testing.assert_array_equal(drawn.flows, flows)
    np.testing.assert_array_equal(drawn.labels, labels)
    rendered, labels = render_subject(161, 3, Preprocess(image_size=28))
    np.testing.assert_array_equal(both.of_subjects(["synthetic/161"]).flows, rendered)
    np.testing.assert_array_equal(both.of_subjects(["synthetic/161"]).labels, labels)
    alone = load("faces", tmp_path / "face", image_size=28, subjects=people[1:], limit=3)
    np.testing.assert_array_equal(alone.flows, rendered)
    with pytest.raises(InputError, match="unknown subject 'synthetic/000'"):  # left to be judged
        load("faces", tmp_path / "face", image_size=28, subjects=["synthetic/000"])


def test_clips_show_their_class_and_keep_its_share(face: MorphableFace) -> None:
    flows, labels, units = render_people(face, range(6), 80, 16, "close")
    assert np.isfinite(flows).all()
    assert flows[..., 2].min() >= 0
    for label, shown in zip(labels, units, strict=True):
        assert shown in {frozenset(recipe.units) for recipe in RECIPES[label]}
    # Three deviations of 480 draws at .45 are .07.
    assert np.bincount(labels, minlength=3) / len(labels) == pytest.approx(CLASS_SHARES, abs=0.07)
    reach = np.hypot(flows[..., 0], flows[..., 1]).max(axis=(1, 2)) / 32
    assert np.median(reach) == pytest.approx(np.mean(PEAK), rel=0.3)


def test_a_model_without_a_needed_movement_is_refused(face: MorphableFace) -> None:
    poor = dataclasses.replace(face, names=tuple(name.replace("noseSneer", "sneer") for name in face.names))
    with pytest.raises(InputError, match="no movement noseSneer_R; it has "):
        unit_moves(poor)


def test_a_model_whose_movement_moves_nothing_is_refused(face: MorphableFace) -> None:
    still = face.expression.copy()
    still[[face.names.index(f"noseSneer_{side}") for side in "LR"]] = 0
    with pytest.raises(InputError, match="noseSneer moves nothing"):
        unit_moves(dataclasses.replace(face, expression=still))


def test_a_model_whose_landmarks_lie_on_no_face_is_refused(face: MorphableFace) -> None:
    near = face.landmarks.copy()
    near[36:42], near[42:48], near[48:55] = face.faces[0][
        :3
    ]  # eyes and mouth in one quadrangle: the crop shows less
    with pytest.raises(InputError, match="shows no face where its landmarks are"):
        render_people(dataclasses.replace(face, landmarks=near), [0], 1, 28, "close")


def test_shares_of_a_class_are_shares() -> None:
    assert [sum(recipe.share for recipe in recipes) for recipes in RECIPES] == pytest.approx([1, 1, 1])
    assert sum(CLASS_SHARES) == pytest.approx(1)
