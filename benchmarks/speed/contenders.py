"""Who takes part: the full ViT through other tools, token reduction by others, and this package's own variants.

All have the weights of `vit-SIZE`, or of `ptsr-SIZE`: the embedded ones, or seeded random ones where none are embedded. Hugging Face's
ViT is given the very weights of `vit-SIZE`, so that one eager model judges every full ViT.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.console import doing
from ptsr_edge.core.errors import JobError, PtsrError
from ptsr_edge.core.files import cache_key, staged_folder
from ptsr_edge.core.system import installed
from ptsr_edge.export.calibration import calibration_side, draw
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.export.targets.openvino import read_onnx
from ptsr_edge.export.targets.quantization import products_kept_float, quantize_static_qdq
from ptsr_edge.models.checkpoint import resolve
from ptsr_edge.models.macs import count_macs
from ptsr_edge.models.ptsr import Vit
from ptsr_edge.profile.schema import Missing, MissingKind
from ptsr_edge.profile.worker import ProfiledVariant
from ptsr_edge.report.comparison import budget_text
from ptsr_edge.runtimes.openvino import can_calculate, load_openvino, require_silenced
from ptsr_edge.vision.flow import to_input

from . import routes
from .environments import python_of, versions_of
from .products import cut_products
from .record import Group
from .token_reduction import ReducedVit, reductions

HERE = Path(__file__).parent

CHECKED = 8
"""Inputs that every contender is compared with its eager model on."""

CALIBRATED = 32

LIMITS = {"fp32": 0.01, "bf16": 0.25, "int8": 0.5}
"""Largest relative error by precision (`record.Agreement`). Wrong weights or inputs give 1 and more; int8 of the others is not
repaired where it loses accuracy, which is theirs to know, so that it is timed as long as it is the same network."""

F32 = {"INFERENCE_PRECISION_HINT": "f32"}

AS_IT_COMES = "as it comes"
"""A precision that the tool chooses, and tells."""


@dataclass(frozen=True)
class Contender:
    """One that is timed, or cannot be.

    Attributes:
        name: unique in a size.
        kind: of `worker.KINDS`; "" for a variant of a bundle.
        environment: of its process, "" for this one.
        eager: (CHECKED, k) logits that it has to give.
        variant: of ours; it has no `kind`, `path` and `eager`.
        products: graph of its products, which is timed as well, and their count; or why there is none.
        missing: why it cannot be timed.
    """

    name: str
    group: Group
    label: str
    runtime: str
    precision: str
    tokens: int
    keep_rate: float
    macs: int | None
    kind: str = ""
    environment: str = ""
    path: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Path | None = None
    eager: NDArray[np.float64] | None = None
    variant: ProfiledVariant | None = None
    products: tuple[Path, int] | Missing | None = None
    missing: Missing | None = None


@dataclass(frozen=True)
class Peer:
    """A way of others to run the full ViT: which file of which route runs in which runtime."""

    name: str
    label: str
    route: str
    file: str
    kind: str
    precision: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: str = ""


BASELINE = "plain"

PEERS = (
    Peer("torch-eager", "torch eager", "", "", "torch", "fp32"),
    Peer("torch-compile-fp32", "torch.compile", "", "", "torch", "fp32", {"compile": True}),
    Peer("torch-compile-bf16", "torch.compile", "", "", "torch", "bf16", {"compile": True, "dtype": "bfloat16"}),
    Peer(BASELINE, "plain export", "onnx", routes.PLAIN, "onnxruntime", "fp32"),
    Peer("ort-dynamic", "quantize_dynamic", "onnxruntime-int8", "dynamic.onnx", "onnxruntime", "int8"),
    Peer("ort-static", "quantize_static, QDQ", "onnxruntime-int8", "static.onnx", "onnxruntime", "int8"),
    Peer("ort-optimizer", "optimizer of transformers", "onnxruntime-int8", "optimized.onnx", "onnxruntime", "fp32"),
    Peer("ort-optimizer-dynamic", "optimizer, quantize_dynamic", "onnxruntime-int8", "optimized-dynamic.onnx", "onnxruntime", "int8"),
    Peer("optimum-onnx", "optimum-onnx", "optimum-onnx", "model.onnx", "onnxruntime", "fp32"),
    Peer("optimum-onnx-int8", "optimum-onnx, avx512_vnni", "optimum-onnx", "model_quantized.onnx", "onnxruntime", "int8"),
    Peer("openvino", "as it comes", "openvino", "model.xml", "openvino", AS_IT_COMES),
    Peer("openvino-f32", "f32 asked for", "openvino", "model.xml", "openvino", "fp32", F32),
    Peer("nncf", "NNCF", "openvino", "int8.xml", "openvino", "int8"),
    Peer("optimum-intel", "optimum-intel", "optimum-intel", "openvino_model.xml", "openvino", AS_IT_COMES),
    Peer("optimum-intel-int8", "optimum-intel, full int8", "optimum-intel", "int8/openvino_model.xml", "openvino", "int8"),
    Peer("litert", "XNNPACK", "litert", "model.tflite", "litert", "fp32", environment="litert"),
    Peer("litert-int8", "XNNPACK, dynamic ranges", "litert", "dynamic.tflite", "litert", "int8", environment="litert"),
    Peer("executorch", "XNNPACK", "executorch", "model.pte", "executorch", "fp32", environment="executorch"),
    Peer("executorch-int8", "XNNPACK, pt2e", "executorch", "int8.pte", "executorch", "int8", environment="executorch"),
)  # fmt: skip

ROUTE_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
"""What routes of this environment depend on."""

RUNTIME_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch", "litert": "LiteRT", "executorch": "ExecuTorch",
                 "cpu": "ONNX Runtime"}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What all contenders of a size are made from."""

    size: str
    folder: Path
    vit: Vit
    checked: NDArray[np.float32]
    calibration: NDArray[np.float32]
    inputs: Path
    digest: str

    @property
    def config(self) -> ModelConfig:
        return self.vit.config


def prepare(size: str, work: Path) -> Prepared:
    """Writes Hugging Face's ViT with the weights of `vit-SIZE`, and the samples that it is calibrated with and checked on.

    Raises:
        JobError: it does not answer as `vit-SIZE` does.
    """
    model, info, _ = resolve(None, f"vit-{size}")
    vit, folder = cast(Vit, model.eval().requires_grad_(False)), work / size / "model"
    flows = to_input(
        draw(calibration_side(info, None, None, CHECKED + CALIBRATED), CHECKED + CALIBRATED)[0].flows
    )
    checked, calibration = flows[:CHECKED], flows[CHECKED:]
    with staged_folder(folder) as stage:
        write_as_hugging_face(vit, stage)
        np.save(stage / "inputs.npy", checked)
        np.save(stage / routes.CALIBRATION, calibration)
    theirs, own = _eager(routes.load_vit(folder), checked), _eager(lambda x: vit(x).logits, checked)
    if (apart := float(np.abs(theirs - own).max())) > 1e-4:
        raise JobError(f"Hugging Face's ViT with the weights of vit-{size} answers {apart:.2g} apart from it")
    digest = hashlib.sha256(
        b"".join((folder / name).read_bytes() for name in ("model.safetensors", routes.CALIBRATION))
    ).hexdigest()
    return Prepared(size, folder, vit, checked, calibration, folder / "inputs.npy", digest)


def write_as_hugging_face(vit: Vit, folder: Path) -> None:
    """Writes a ViT as `ViTForImageClassification.save_pretrained` does; a layer scale goes into the weights before it."""
    from safetensors.torch import save_file
    from transformers import ViTConfig

    config, state = vit.config, vit.state_dict()
    settings = ViTConfig(
        hidden_size=config.dim, num_hidden_layers=config.depth, num_attention_heads=config.heads, intermediate_size=config.mlp_dim,
        image_size=config.image_size, patch_size=config.patch_size, num_channels=config.channels, num_labels=config.classes,
        layer_norm_eps=config.norm_eps, hidden_dropout_prob=0.0,
        architectures=["ViTForImageClassification"],
    )  # fmt: skip
    settings.save_pretrained(folder)
    tensors = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
    }
    names = {
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    for index in range(config.depth):
        own, other = f"blocks.{index}", f"vit.encoder.layer.{index}"
        names |= {f"{own}.norm1": f"{other}.layernorm_before", f"{own}.norm2": f"{other}.layernorm_after",
                  f"{own}.mlp.fc1": f"{other}.intermediate.dense"}  # fmt: skip
        for part in ("weight", "bias"):
            for place, values in zip(
                ("query", "key", "value"), state[f"{own}.attn.qkv.{part}"].chunk(3), strict=True
            ):
                tensors[f"{other}.attention.attention.{place}.{part}"] = values
            for layer, scale, place in (
                ("attn.proj", "ls1", "attention.output"),
                ("mlp.fc2", "ls2", "output"),
            ):
                values = state[f"{own}.{layer}.{part}"]
                gamma = state.get(f"{own}.{scale}.gamma")
                if gamma is not None:
                    values = values * gamma.view(-1, *[1] * (values.ndim - 1))
                tensors[f"{other}.{place}.dense.{part}"] = values
    tensors |= {
        f"{theirs}.{part}": state[f"{own}.{part}"]
        for own, theirs in names.items()
        for part in ("weight", "bias")
    }
    save_file(
        {name: values.contiguous().clone() for name, values in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _eager(model: Callable[[torch.Tensor], torch.Tensor], inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(one[None].copy())).double().numpy() for one in inputs])


def _has_bf16() -> bool:
    return can_calculate(["bf16"])


NO_BF16 = Missing(kind="not_supported", reason="this processor has no bfloat16")


# ---------------------------------------------------------------------------------------------
# The full ViT by others


def full_vits(prepared: Prepared) -> list[Contender]:
    """Every peer, by its route; one whose tool is missing or fails is told."""
    config = prepared.config
    eager = _eager(routes.load_vit(prepared.folder), prepared.checked)
    macs = count_macs(prepared.vit, (torch.zeros(1, *config.input_shape),)).total
    taken: dict[str, Path | Missing] = {"": prepared.folder}
    found = []
    for peer in PEERS:
        if peer.route not in taken:
            taken[peer.route] = follow(peer.route, prepared)
        place = taken[peer.route]
        missing = place if isinstance(place, Missing) else None
        if peer.precision == "bf16" and not _has_bf16():
            missing = NO_BF16
        found.append(
            Contender(
                name=f"{peer.name}-{prepared.size}", group="full ViT by others", label=peer.label,
                runtime=RUNTIME_NAMES[peer.kind], precision=peer.precision, tokens=config.patches, keep_rate=1.0, macs=macs,
                kind=peer.kind, environment=peer.environment, path=None if isinstance(place, Missing) else place / peer.file,
                options=peer.options, inputs=prepared.inputs, eager=eager, missing=missing,
            )
        )  # fmt: skip
    return found


def follow(route: str, prepared: Prepared) -> Path | Missing:
    """Returns the folder that a route wrote, made now or before from the same model by the same tools; or why there is none."""
    name = route if route in ("litert", "executorch", "optimum-onnx", "optimum-intel") else ""
    python = python_of(name)
    if isinstance(python, Missing):
        return python
    tools = versions_of(name) if name else installed(ROUTE_TOOLS)
    source = hashlib.sha256((HERE / "routes.py").read_bytes()).hexdigest()
    key = cache_key({"route": route, "source": source, "model": prepared.digest, "tools": tools})
    place = prepared.folder.parent / f"{route}-{key[:12]}"
    if place.is_dir():
        return place
    with doing(f"{prepared.size}: {route}"):
        try:
            with staged_folder(place) as stage:
                done = subprocess.run(
                    [str(python), str(HERE / "routes.py"), route, str(prepared.folder), str(stage)],
                    capture_output=True, text=True, errors="replace", check=False,
                )  # fmt: skip
                if done.returncode:
                    said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [
                        "it said nothing"
                    ]
                    raise JobError(f"the conversion ended with exit code {done.returncode}: {said[-1][:300]}")
        except JobError as error:
            return Missing(kind="failed", reason=str(error))
    return place


# ---------------------------------------------------------------------------------------------
# Token reduction by others


def reduced_vits(prepared: Prepared) -> list[Contender]:
    """EViT and ToMe in ONNX Runtime and OpenVINO; see `token_reduction`."""
    schedules, impossible = reductions(prepared.config)
    found = [
        _not_made("token reduction by others", f"{name}-{prepared.size}", name, why, "not_applicable")
        for name, why in impossible.items()
    ]
    for schedule in schedules:
        model = ReducedVit(prepared.vit, schedule.steps).eval()
        macs = count_macs(model, (torch.zeros(1, *prepared.config.input_shape),)).total
        eager = _eager(model, prepared.checked)
        try:
            place = reduced_graphs(model, schedule.name, prepared)
        except PtsrError as error:
            name = f"{schedule.name}-{prepared.size}"
            found.append(_not_made("token reduction by others", name, schedule.label, str(error)))
            continue
        ways: list[tuple[str, str, str, str, dict[str, Any]]] = [
            ("onnxruntime-fp32", "model.onnx", "onnxruntime", "fp32", {}),
            ("onnxruntime-int8", "int8.onnx", "onnxruntime", "int8", {}),
            ("openvino-fp32", "model.xml", "openvino", "fp32", F32),
            ("openvino-bf16", "model.xml", "openvino", "bf16", {"INFERENCE_PRECISION_HINT": "bf16"}),
            ("openvino-int8", "int8.xml", "openvino", "int8", {}),
        ]
        found += [
            Contender(
                name=f"{schedule.name}-{prepared.size}-{name}", group="token reduction by others", label=schedule.label,
                runtime=RUNTIME_NAMES[kind], precision=precision, tokens=model.tokens(), keep_rate=schedule.keep_rate, macs=macs,
                kind=kind, path=place / file, options=options, inputs=prepared.inputs, eager=eager,
                missing=NO_BF16 if precision == "bf16" and not _has_bf16() else None,
            )
            for name, file, kind, precision, options in ways
        ]  # fmt: skip
    return found


def reduced_graphs(model: ReducedVit, name: str, prepared: Prepared) -> Path:
    """Returns a folder with a reduced ViT as ONNX and IR, fp32 and int8; made now or before from the same source and weights."""
    source = hashlib.sha256(
        Path(__file__).read_bytes() + (HERE / "token_reduction.py").read_bytes()
    ).hexdigest()
    key = cache_key(
        {"name": name, "source": source, "model": prepared.digest, "tools": installed(ROUTE_TOOLS)}
    )
    place = prepared.folder.parent / f"{name}-{key[:12]}"
    if place.is_dir():
        return place
    ov, nncf = load_openvino(), require_silenced("nncf", "openvino-build", "quantizing for OpenVINO")
    quiet = redirect_stdout(io.StringIO())  # NNCF's progress bars
    with doing(f"{prepared.size}: {name}"), staged_folder(place) as stage, quiet:
        graph = trace(model, prepared.config)
        onnx.save(graph, stage / "model.onnx")
        int8_graph = quantize_static_qdq(
            graph, prepared.calibration, symmetric_activations=False, exclude=products_kept_float(graph)
        )
        onnx.save(int8_graph, stage / "int8.onnx")
        plain = read_onnx(ov, stage / "model.onnx")
        ov.save_model(plain, stage / "model.xml")
        samples = [one[None].copy() for one in prepared.calibration]
        int8 = nncf.quantize(
            plain, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
        )
        ov.save_model(int8, stage / "int8.xml")
    return place


# ---------------------------------------------------------------------------------------------
# Ours


def own_variants(prepared: Prepared, budgets: Sequence[float]) -> list[Contender]:
    """`vit-SIZE` and `ptsr-SIZE` as the package exports them, with the graphs of their products."""
    size, work = prepared.size, prepared.folder.parent
    precisions = ["fp32", *(["bf16"] if _has_bf16() else []), "int8"]
    found: list[Contender] = []
    for name, rates in ((f"vit-{size}", [1.0]), (f"ptsr-{size}", list(budgets))):
        folder = work / name
        asked: dict[str, Any] = {
            "target": ["cpu", "openvino"],
            "budgets": rates,
            "precisions": precisions,
            "cache": True,
        }
        try:
            with doing(f"{size}: exporting {name}"):
                export_bundle(out=folder, model=name, **asked)
        except PtsrError as error:
            found.append(_not_made("ours", name, name, str(error)))
            continue
        bundle = read_bundle(folder)
        for variant in bundle.variants:
            label = "full ViT" if name.startswith("vit") else f"PTSR, {budget_text(variant.keep_rate)}"
            found.append(
                Contender(
                    name=variant.id, group="ours", label=label, runtime=RUNTIME_NAMES[variant.target], precision=variant.precision,
                    tokens=variant.tokens, keep_rate=variant.keep_rate, macs=variant.macs,
                    variant=ProfiledVariant(variant.id, folder, bundle, variant),
                    products=products_of(variant.target, folder / variant.artifact, work / "products"), inputs=prepared.inputs,
                )
            )  # fmt: skip
    return found


def products_of(target: str, artifact: Path, folder: Path) -> tuple[Path, int] | Missing:
    """Returns the graph of an artifact's products and their count, or why there is none."""
    folder.mkdir(exist_ok=True)
    try:
        return folder / artifact.name, cut_products(target, artifact, folder / artifact.name)
    except PtsrError as error:
        return Missing(kind="failed", reason=f"the products cannot be cut out: {error}")


def _not_made(group: Group, name: str, label: str, why: str, kind: MissingKind = "failed") -> Contender:
    """One that could not even be made: it has a row that says so."""
    return Contender(
        name=name, group=group, label=label, runtime="any", precision="any", tokens=0, keep_rate=0.0, macs=None,
        missing=Missing(kind=kind, reason=why),
    )  # fmt: skip
