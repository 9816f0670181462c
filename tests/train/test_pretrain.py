"""Starting weights: the close crop, and the command that trains them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ptsr_edge.core.config import named_model
from ptsr_edge.data.datasets import CLOSE, close_up, closely_cropped
from ptsr_edge.models.checkpoint import EMBEDDED, STARTING, load_checkpoint, read_info
from ptsr_edge.train import pretrain
from ptsr_edge.train.pretrain import main
from ptsr_edge.train.trainer import PRETRAINING


def test_the_close_up_stretches_a_linear_field_to_itself_over_the_part() -> None:
    # At 112 pixels the part is columns 17 to 91 and rows 14 to 105: 75 of 112 columns fill the width. u = x in
    # pixels of the wide picture is then (17 + 75 (X + .5) / 112 - .5) * 112 / 75 in pixels of the close one.
    x = np.arange(112, dtype=np.float32)
    field = np.zeros((1, 112, 112, 3), dtype=np.float32)
    field[0, ..., 0], field[0, ..., 1], field[0, ..., 2] = x, x[:, None], x
    close = close_up(field, 112)[0]
    columns = np.arange(20, 92)
    at = 17 + 75 * (columns + 0.5) / 112 - 0.5
    assert np.abs(close[50, columns, 0] - at * 112 / 75).max() < 0.05  # bilinear weights have five bits
    assert np.abs(close[50, columns, 2] - at).max() < 0.05  # the strain is not stretched
    rows = 14 + 92 * (columns + 0.5) / 112 - 0.5
    assert np.abs(close[columns, 50, 1] - rows * 112 / 92).max() < 0.05


def test_the_part_is_inside_and_keeps_brows_and_chin() -> None:
    x0, y0, x1, y1 = CLOSE
    assert 0 < x0 < 0.2
    assert 0.8 < x1 < 1
    assert 0 < y0 < 0.2
    assert 0.9 < y1 < 1


@pytest.mark.parametrize("name", ["ptsr-nano", "vit-nano"])
def test_starting_weights_say_how_they_were_made(name: str) -> None:
    info = read_info(STARTING / f"{name}.safetensors")
    assert info.model == named_model(name)
    provenance = info.provenance
    assert provenance["data"] == "synthetic"
    assert provenance["recipe"] == PRETRAINING["nano"].model_dump(mode="json")
    assert provenance["command"] == f"python -m ptsr_edge.train.pretrain --model {name} --seed 0"
    assert not set(provenance["train_subjects"]) & set(provenance["held_out_subjects"])
    assert all(entry["uar"] > 0.6 for entry in provenance["held_out"].values())  # chance is 1/3
    assert not (EMBEDDED / f"{name}.safetensors").exists()


def test_the_command_writes_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A few of the 160 subjects: rendering all takes half a minute.
    few = closely_cropped(28, clips=1)
    few = few.of_subjects(few.subject_names[:40])
    monkeypatch.setattr(pretrain, "closely_cropped", lambda _side, _clips: few)
    out = tmp_path / "start.safetensors"
    done = CliRunner().invoke(main, ["--model", "ptsr-nano", "--epochs", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out)
    model, info = load_checkpoint(out)
    assert model.config == named_model("ptsr-nano")
    assert len(info.provenance["train_subjects"]) == 32


def test_a_model_without_a_recipe_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "start.safetensors"
    done = CliRunner().invoke(main, ["--model", "ptsr-small", "--out", str(out)])
    assert done.exit_code == 2
    assert not out.exists()
