"""The ways from Hugging Face's ViT to an artifact, one function each, as the tools' own documentation goes.

    python routes.py ROUTE MODEL_DIR OUT_DIR

It stands alone, so that a route runs in the environment of its tool. MODEL_DIR is what `save_pretrained` writes, with
`calibration.npy` (n, 3, S, S) beside it; what a route writes lies in OUT_DIR under the names that `contenders` knows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # nothing is sent

import numpy as np  # noqa: E402  (the environment is read by what is imported)

CALIBRATION = "calibration.npy"

PLAIN = "model.onnx"


def load_vit(model: Path) -> Any:
    """Returns the ViT as a module (1, 3, S, S) -> logits (1, k)."""
    import torch
    from transformers import ViTForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = ViTForImageClassification.from_pretrained(model).eval()

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.vit(pixel_values).logits

    return Logits().eval().requires_grad_(False)


def samples(model: Path) -> list[np.ndarray]:
    """Returns the calibration samples, (1, 3, S, S) each."""
    # An axis that is only seen has stride 0, which ExecuTorch refuses: so each is a copy.
    return [one[None].copy() for one in np.load(model / CALIBRATION)]


def example(model: Path) -> Any:
    import torch

    return (torch.from_numpy(samples(model)[0]),)


def onnx(model: Path, out: Path) -> None:
    """torch's exporter with nothing but the names of input and output."""
    import torch

    torch.onnx.export(
        load_vit(model), example(model), out / PLAIN, input_names=["flow"], output_names=["logits"],
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip


def onnxruntime_int8(model: Path, out: Path) -> None:
    """Dynamic and static int8 behind the preparation that the documentation names; the optimizer, and int8 behind it."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers import optimizer

    onnx(model, out)
    plain, prepared, optimized = out / PLAIN, out / "prepared.onnx", out / "optimized.onnx"
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    quantization.quantize_dynamic(prepared, out / "dynamic.onnx")
    waiting = iter(samples(model))

    class Samples(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(waiting, None)
            return None if one is None else {"flow": one}

    quantization.quantize_static(
        prepared, out / "static.onnx", Samples(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
    )
    config = json.loads((model / "config.json").read_text())
    found = optimizer.optimize_model(
        str(plain),
        model_type="vit",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
    )
    found.save_model_to_file(str(optimized))
    quantization.quantize_dynamic(optimized, out / "optimized-dynamic.onnx")


def openvino(model: Path, out: Path) -> None:
    """OpenVINO's own conversion, and NNCF's default quantization of it for a transformer."""
    import nncf
    import openvino as ov

    given = example(model)
    converted = ov.convert_model(load_vit(model), example_input=given[0], input=list(given[0].shape))
    ov.save_model(converted, out / "model.xml")
    data = nncf.Dataset(samples(model))
    quantized = nncf.quantize(
        converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples(model))
    )
    ov.save_model(quantized, out / "int8.xml")


def litert(model: Path, out: Path) -> None:
    """LiteRT's conversion from torch, and its quantizer's recipe of dynamic ranges."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    litert_torch.convert(load_vit(model), example(model)).export(str(out / "model.tflite"))
    found = quantizer.Quantizer(str(out / "model.tflite"), recipe.dynamic_wi8_afp32())
    found.quantize().export_model(str(out / "dynamic.tflite"))


def executorch(model: Path, out: Path) -> None:
    """ExecuTorch for XNNPACK, in fp32 and quantized by torchao with XNNPACK's quantizer."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def write(program: Any, path: Path) -> None:
        path.write_bytes(
            to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
        )

    given = example(model)
    program = torch.export.export(load_vit(model), given)
    write(program, out / "model.pte")
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    for one in samples(model):
        prepared(torch.from_numpy(one))
    write(torch.export.export(convert_pt2e(prepared), given), out / "int8.pte")


def optimum_onnx(model: Path, out: Path) -> None:
    """optimum-onnx: its exporter, and its dynamic int8 for AVX-512 VNNI."""
    from optimum.onnxruntime import ORTModelForImageClassification, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    found = ORTModelForImageClassification.from_pretrained(model, export=True)
    found.save_pretrained(out)
    quantizer = ORTQuantizer.from_pretrained(found)
    quantizer.quantize(
        save_dir=out,
        quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False),
    )


def optimum_intel(model: Path, out: Path) -> None:
    """optimum-intel: its exporter, and its full int8."""
    import nncf
    from optimum.intel import OVConfig, OVModelForImageClassification, OVQuantizationConfig, OVQuantizer

    found = OVModelForImageClassification.from_pretrained(model, export=True, compile=False)
    found.save_pretrained(out)
    given = [{"pixel_values": one} for one in samples(model)]
    settings = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(given)))
    OVQuantizer.from_pretrained(found).quantize(
        nncf.Dataset(given), save_directory=out / "int8", ov_config=settings
    )


ROUTES: dict[str, Callable[[Path, Path], None]] = {
    "onnx": onnx,
    "onnxruntime-int8": onnxruntime_int8,
    "openvino": openvino,
    "litert": litert,
    "executorch": executorch,
    "optimum-onnx": optimum_onnx,
    "optimum-intel": optimum_intel,
}


def main() -> int:
    route, model, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    ROUTES[route](model, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
