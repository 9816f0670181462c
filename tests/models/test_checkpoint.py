"""Checkpoints, what they refuse, the baseline against Hugging Face's ViT through every layout, and eager answers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess, named_model
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.models import checkpoint as module
from ptsr_edge.models.checkpoint import (
    CheckpointInfo,
    choose_device,
    load_checkpoint,
    load_vit,
    load_vit_state,
    predict_logits,
    read_info,
    resolve,
    save_checkpoint,
)
from ptsr_edge.models.ptsr import Ptsr, Vit, build_model, random_tokens

GEOMETRIES = {
    # Those of vit-nano and vit-tiny, without layer scale, which is no part of Hugging Face's ViT. Its
    # norms' epsilon is 1e-12.
    "nano": dict(image_size=28, patch_size=4, dim=24, depth=1, heads=2, mlp_ratio=1.0),
    "tiny": dict(image_size=112, patch_size=8, dim=192, depth=6, heads=3, mlp_ratio=4.0),
}


def vit_config(size: str, **changes: Any) -> ModelConfig:
    values = dict(name=f"vit-like-{size}", kind="vit", norm_eps=1e-12) | GEOMETRIES[size] | changes
    return ModelConfig(**cast(Any, values))


def transformers_vit(config: ModelConfig) -> Any:
    """Hugging Face's ViT of the same geometry with every weight drawn."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_dim,
            layer_norm_eps=config.norm_eps,
            num_labels=config.classes,
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            width = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * width**-0.5)
    return theirs


def named_as_in_transformers_4(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "vit.layers.": "vit.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for name, value in state.items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[name] = value
    return renamed


def named_as_in_timm(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """By hand, as `timm.models.vision_transformer` and DeiT's checkpoints name them."""
    outer = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
        "head.weight": "classifier.weight",
        "head.bias": "classifier.bias",
    }
    timm = {name: state[theirs] for name, theirs in outer.items()}
    for index in range(depth):
        ours, theirs = f"blocks.{index}.", f"vit.layers.{index}."
        for part in ("weight", "bias"):
            timm[f"{ours}norm1.{part}"] = state[f"{theirs}layernorm_before.{part}"]
            timm[f"{ours}attn.qkv.{part}"] = torch.cat(
                [state[f"{theirs}attention.{letter}_proj.{part}"] for letter in "qkv"]
            )
            timm[f"{ours}attn.proj.{part}"] = state[f"{theirs}attention.o_proj.{part}"]
            timm[f"{ours}norm2.{part}"] = state[f"{theirs}layernorm_after.{part}"]
            timm[f"{ours}mlp.fc1.{part}"] = state[f"{theirs}mlp.fc1.{part}"]
            timm[f"{ours}mlp.fc2.{part}"] = state[f"{theirs}mlp.fc2.{part}"]
    return timm


@pytest.mark.parametrize("size", GEOMETRIES)
@pytest.mark.parametrize("layout", ["transformers 5", "transformers 4", "timm", "saved file"])
def test_the_baseline_is_the_plain_vit(size: str, layout: str, tmp_path: Path) -> None:
    # Reference: transformers' ViTForImageClassification in float32. 1e-5 of the largest logit: two
    # orders of the same float32 sums over up to 768 products.
    config = vit_config(size)
    theirs = transformers_vit(config)
    state = {name: value.detach() for name, value in theirs.state_dict().items()}
    model = Vit(config).eval()
    if layout == "saved file":
        theirs.save_pretrained(tmp_path)
        load_vit(model, tmp_path / "model.safetensors")
    elif layout == "timm":
        load_vit_state(model, named_as_in_timm(state, config.depth), "timm")
    else:
        old = layout == "transformers 4"
        load_vit_state(model, named_as_in_transformers_4(state) if old else state, layout)
    images = torch.randn(
        3, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        expected, found = theirs(images).logits.numpy(), model(images).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_deit_wraps_its_state_in_model() -> None:
    source = build_model(vit_config("nano"), seed=1)
    wrapped = {f"model.{name}": value for name, value in source.state_dict().items()}
    target = build_model(vit_config("nano"), seed=2)
    load_vit_state(cast(Vit, target), wrapped, "deit")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("name", ["dist_token", "head_dist.weight"])
def test_a_distilled_deit_is_refused(name: str) -> None:
    model = cast(Vit, build_model(vit_config("nano")))
    with pytest.raises(InputError, match=f"deit is a distilled DeiT .it has {name}.; accepted are the plain"):
        load_vit_state(model, model.state_dict() | {name: torch.zeros(1, 1, 24)}, "deit")


@pytest.mark.parametrize("layout", ["timm", "transformers"])
@pytest.mark.parametrize(
    "lost", ["mlp.fc1.bias", "norm.weight|vit.layernorm.weight", "attn.qkv.weight|attention.k_proj.weight"]
)
def test_a_missing_weight_is_named(layout: str, lost: str) -> None:
    config = vit_config("nano")
    state = transformers_vit(config).state_dict()
    if layout == "timm":
        state = named_as_in_timm(state, config.depth)
    ending = lost.split("|")[0 if layout == "timm" else -1]
    name = next(name for name in state if name == ending or name.endswith(f".{ending}"))
    del state[name]
    with pytest.raises(InputError, match=r"^here (lacks|does not fit vit-like-nano: it lacks) ") as caught:
        load_vit_state(Vit(config), state, "here")
    assert "\n" not in str(caught.value)


def test_a_weight_of_another_shape_is_named() -> None:
    state = build_model(vit_config("nano", classes=1000)).state_dict()
    says = r"imagenet does not fit vit-like-nano: head\.\w+ is \(1000, ?(24)?\), wanted \(3, ?(24)?\)"
    with pytest.raises(InputError, match=says):
        load_vit_state(Vit(vit_config("nano")), state, "imagenet")


@pytest.mark.parametrize("layout", ["timm", "transformers 4", "transformers 5"])
def test_a_deeper_vit_is_refused_and_not_cut_off(layout: str) -> None:
    deep = vit_config("nano", depth=2)
    state = transformers_vit(deep).state_dict()
    if layout == "timm":
        state = named_as_in_timm(state, 2)
    elif layout == "transformers 4":
        state = named_as_in_transformers_4(state)
    with pytest.raises(InputError, match=r"^here .*vit-like-nano|^here .*depth 1"):
        load_vit_state(Vit(vit_config("nano")), state, "here")


def info_of(config: ModelConfig, **provenance: Any) -> CheckpointInfo:
    return CheckpointInfo(
        schema=1,
        model=config,
        preprocess=Preprocess(image_size=config.image_size),
        labels=list(LABELS),
        provenance={"kind": "random", **provenance},
    )


@pytest.mark.parametrize("changes", [{}, {"token_norm": "batch", "layer_scale": 0.1}, {"kind": "vit"}])
def test_a_checkpoint_reads_back_bitwise(
    ptsr_config: Any, randomised: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = randomised(ptsr_config(**changes))
    info = info_of(model.config, card="größer", subjects=["a", "b"])
    save_checkpoint(tmp_path / "a.safetensors", model, info)
    again, read = load_checkpoint(tmp_path / "a.safetensors")
    assert read == info == read_info(tmp_path / "a.safetensors")
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not again.training
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(image).logits, again(image).logits)


def test_equal_models_give_equal_files(ptsr_config: Any, randomised: Any, tmp_path: Path) -> None:
    model = randomised(ptsr_config())
    for name in ("a", "b"):
        save_checkpoint(tmp_path / f"{name}.safetensors", model, info_of(model.config))
    assert sha256_of(tmp_path / "a.safetensors") == sha256_of(tmp_path / "b.safetensors")


def test_half_is_rounded_to_float16_and_read_as_float32(
    ptsr_config: Any, randomised: Any, tmp_path: Path
) -> None:
    model = randomised(ptsr_config(token_norm="batch"))
    save_checkpoint(tmp_path / "whole.safetensors", model, info_of(model.config))
    save_checkpoint(tmp_path / "half.safetensors", model, info_of(model.config), half=True)
    state = load_checkpoint(tmp_path / "half.safetensors")[0].state_dict()
    for name, value in model.state_dict().items():
        assert state[name].dtype == value.dtype
        # IEEE 754 binary16: 11 significant bits, so 2^-11 relative; below 2^-14 steps of 2^-24.
        assert bool(((state[name] - value).abs() <= value.abs() * 2**-11 + 2**-25).all()), name
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    header = 8 + struct.unpack("<Q", (tmp_path / "half.safetensors").read_bytes()[:8])[0]
    assert sizes[1] - header == pytest.approx((sizes[0] - header) / 2, rel=0.01)


def test_weights_that_cannot_be_read_back_are_not_written(ptsr_config: Any, tmp_path: Path) -> None:
    model = build_model(ptsr_config())
    with torch.no_grad():
        cast(Ptsr, model).cls_token[0, 0, 0] = 1e5  # float16 ends at 65504
    with pytest.raises(JobError, match="as float16, cls_token holds NaN"):
        save_checkpoint(tmp_path / "half.safetensors", model, info_of(model.config), half=True)
    with torch.no_grad():
        cast(Ptsr, model).cls_token[0, 0, 0] = float("nan")
    with pytest.raises(JobError, match="as float32, cls_token holds NaN"):
        save_checkpoint(tmp_path / "diverged.safetensors", model, info_of(model.config))
    assert list(tmp_path.iterdir()) == []


def test_a_pickled_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"

    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was run",)

    torch.save({"weight": Bomb()}, path)
    for read in (load_checkpoint, lambda path: load_vit(Vit(vit_config("nano")), path)):
        with pytest.raises(InputError, match=r"weights\.pth is not a safetensors file .*pickled") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tiny_checkpoint: Path, tmp_path: Path, share: float) -> None:
    content = tiny_checkpoint.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"cut\.safetensors is not a safetensors file"):
        load_checkpoint(tmp_path / "cut.safetensors")


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match="there is no checkpoint at "):
            load_checkpoint(path)


def test_weights_of_another_project_are_refused_with_the_way_to_use_them(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"holds weights but no ptsr-edge configuration.*--init"):
        load_checkpoint(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("{", "its ptsr_edge metadata is not JSON"),
        ("[]", "Input should be a valid dictionary"),
        ('{"schema": 2}', r"schema: Input should be 1 \(found 2\)"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused(tmp_path: Path, metadata: str, says: str) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "odd.safetensors", {"ptsr_edge": metadata})
    with pytest.raises(InputError, match=says):
        load_checkpoint(tmp_path / "odd.safetensors")


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint with its tensors changed in place."""
    tensors = load_file(source)
    change(tensors)
    info = read_info(source).model_dump_json(by_alias=True)
    save_file(tensors, target, {"ptsr_edge": info})
    return target


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused(tiny_checkpoint: Path, tmp_path: Path, value: float) -> None:
    def breaks(tensors: dict[str, Tensor]) -> None:
        tensors["pos_embed"][0, 3, 5] = value

    path = rewritten(tiny_checkpoint, tmp_path / "broken.safetensors", breaks)
    with pytest.raises(InputError, match="pos_embed holds NaN or infinite values"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("cls_token"), "it lacks 'cls_token'"),
        (lambda t: t.update(extra=torch.ones(1), more=torch.ones(1)), "it has 'extra' and 1 more"),
        (lambda t: t.update(cls_token=torch.ones(1, 1, 7)), r"cls_token is \(1, 1, 7\), wanted \(1, 1, 24\)"),
    ],
)
def test_weights_that_are_not_those_of_the_configuration(
    tiny_checkpoint: Path, tmp_path: Path, change: Any, says: str
) -> None:
    path = rewritten(tiny_checkpoint, tmp_path / "odd.safetensors", change)
    with pytest.raises(InputError, match=f"does not fit ptsr-test: {says}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depth": 128}, "it lacks 'blocks.10"),
        ({"dim": 4096, "heads": 1, "depth": 128}, "it lacks 'blocks.10"),
        ({"image_size": 2048, "patch_size": 2}, "does not fit ptsr-test: "),
        ({"depth": 10**6}, "depth"),
        ({"dim": 20_000}, "dim"),
        ({"name": "/tmp/elsewhere"}, "name"),
        ({"name": "../../elsewhere"}, "name"),
    ],
)  # fmt: skip
def test_a_small_file_that_names_a_huge_model_or_a_path_is_refused_at_once(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    info = json.loads(read_info(tiny_checkpoint).model_dump_json(by_alias=True))
    info["model"] |= change
    info["preprocess"]["image_size"] = info["model"]["image_size"]
    save_file(load_file(tiny_checkpoint), tmp_path / "huge.safetensors", {"ptsr_edge": json.dumps(info)})
    monkeypatch.setattr(module, "build_model", lambda *_: pytest.fail("weights of that size were made"))
    with pytest.raises(InputError, match=says):
        load_checkpoint(tmp_path / "huge.safetensors")


def test_a_checkpoint_of_another_model_than_named_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="is a checkpoint of ptsr-test, not of ptsr-tiny"):
        resolve(tiny_checkpoint, "ptsr-tiny")


def test_what_is_resolved_and_in_which_order(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EMBEDDED", tmp_path)
    model, info, digest = resolve(tiny_checkpoint, None)
    assert (model.config.name, digest) == ("ptsr-test", sha256_of(tiny_checkpoint))
    assert info.provenance["kind"] == "trained"
    # Nothing embedded: seeded random weights that say so.
    model, info, digest = resolve(None, "vit-nano")
    assert (info.provenance["kind"], digest) == ("random", "random-vit-nano-seed0")
    assert "answers mean nothing" in info.provenance["card"]
    expected = build_model(named_model("vit-nano"), seed=0).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    # Embedded weights come before random ones.
    embedded = build_model(named_model("vit-nano"), seed=9)
    save_checkpoint(tmp_path / "vit-nano.safetensors", embedded, info_of(embedded.config, card="shipped"))
    _, info, digest = resolve(None, "vit-nano")
    assert (info.provenance["card"], digest) == ("shipped", sha256_of(tmp_path / "vit-nano.safetensors"))
    with pytest.raises(InputError, match="unknown model 'vit-nanno'"):
        resolve(None, "vit-nanno")


def test_metadata_is_readable_without_this_toolkit(tiny_checkpoint: Path) -> None:
    content = tiny_checkpoint.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    info = json.loads(header["__metadata__"]["ptsr_edge"])
    assert info["schema"] == 1
    assert info["model"]["name"] == "ptsr-test"


def test_what_a_checkpoint_says_is_read_without_its_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = tiny_checkpoint.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(content[:header] + b"\xff" * (len(content) - header))  # every float32 a NaN
    assert read_info(broken) == read_info(tiny_checkpoint) == load_checkpoint(tiny_checkpoint)[1]
    with pytest.raises(InputError, match="NaN"):
        load_checkpoint(broken)
    broken.write_bytes(content[:-1])
    with pytest.raises(InputError, match="is not a safetensors file"):
        read_info(broken)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": ["a", "b"]}, r"labels must be 3 different names, one a class, got \['a', 'b'\]"),
        ({"labels": ["a", "b", "a"]}, "labels must be 3 different names"),
        ({"preprocess": Preprocess(image_size=32)}, "samples are made of 32 pixels, the model takes 28"),
    ],
)
def test_parts_that_do_not_fit_together_are_no_checkpoint(changes: dict[str, Any], says: str) -> None:
    config = named_model("ptsr-nano")
    fields: dict[str, Any] = dict(
        model=config, preprocess=Preprocess(image_size=28), labels=list(LABELS), provenance={}
    )
    CheckpointInfo(**fields)
    with pytest.raises(ValueError, match=says):
        CheckpointInfo(**fields | changes)


def test_a_score_that_there_is_not_is_told_with_the_file(tmp_path: Path) -> None:
    config = named_model("ptsr-nano")
    info = json.loads(info_of(config).model_dump_json(by_alias=True))
    info["model"]["score"] = "clss-attention"
    save_file({"weight": torch.ones(2)}, tmp_path / "odd.safetensors", {"ptsr_edge": json.dumps(info)})
    with pytest.raises(InputError, match=r"odd\.safetensors: unknown score .*\(nearest: class-attention\)"):
        load_checkpoint(tmp_path / "odd.safetensors")


TOY = ModelConfig(name="toy", kind="ptsr", image_size=16, patch_size=4, dim=8, depth=2, heads=2, dropout=0.5)


def test_batches_give_what_single_samples_give() -> None:
    model = build_model(TOY)
    flows = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype(np.float32)
    logits, kept = predict_logits(model, flows, tokens=4, batch=2)
    singles = [predict_logits(model, flows[place : place + 1], tokens=4) for place in range(5)]
    # Products of other batch sizes may round differently: fp32 rounding, a few 1e-7 on logits near 1.
    np.testing.assert_allclose(logits, np.concatenate([one for one, _ in singles]), atol=1e-6)
    assert [set(row) for row in kept] == [set(one[0]) for _, one in singles]


def test_each_sample_keeps_the_patches_that_it_is_told_to() -> None:
    model = build_model(TOY)
    flows = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype(np.float32)
    forced = random_tokens(5, TOY.patches, 4, seed=1)
    logits, kept = predict_logits(model, flows, tokens=4, batch=2, forced=forced)
    np.testing.assert_array_equal(kept, forced.numpy())
    own, _ = predict_logits(model, flows, tokens=4, batch=2)
    assert np.abs(logits - own).max() > 1e-4


def test_dropout_is_off_and_the_mode_is_put_back() -> None:
    model = build_model(TOY).train()
    flows = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    first, _ = predict_logits(model, flows)
    second, _ = predict_logits(model, flows)
    np.testing.assert_array_equal(first, second)
    assert model.training


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (choose_device("auto"), choose_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(InputError, match="sees no GPU; accepted: auto, cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name) for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    with pytest.raises(InputError, match="unknown device 'tpu'; accepted: auto, cpu, cuda"):
        choose_device("tpu")
