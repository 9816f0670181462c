"""8-bit OpenVINO models by NNCF: what is quantized, how, and what stays in float32."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.targets.base import BuildRequest
from ptsr_edge.runtimes.openvino import last_line
from ptsr_edge.runtimes.telemetry import require_silenced

SMOOTH_QUANT = -1.0
"""NNCF's SmoothQuant alpha; -1: none. With trained weights .5 and .95 moved the logits' error by a quarter
either way and no decision, and scale the weights by each budget's activations: nothing could be shared."""


def quantize(model: Any, request: BuildRequest) -> tuple[Any, dict[str, Any]]:
    """Symmetric 8-bit activations, and weights per channel, by NNCF's post-training quantization.

    Chosen on trained weights (`ptsr-tiny`, 32 samples). Symmetric activations: at full budget the largest error
    of a logit was .020, with asymmetric ones .055; at 25 % .022 and .032. Weights that use 7 of their 8 bits:
    else sums overflow on CPUs without VNNI, which then answer otherwise than the CPU that proved the artifact.
    No bias correction: it would make the biases differ by budget.

    Left in float32: what only serves the selection, where one token swapped costs more than 8 bits save;
    products without a weight matrix (attention, and the readout by position) and that of the patches' means, which
    gain no time; and what `keep_float` names.

    Returns:
        The quantized model, and what it was quantized with.

    Raises:
        InputError: no calibration samples.
        MissingExtraError: nncf is not installed.
        JobError: NNCF refuses the model.
    """
    if not len(request.calibration):
        raise InputError("int8 needs calibration samples, got none")
    nncf = require_silenced("nncf", "openvino", "quantizing for OpenVINO")
    named = sorted(request.options.get("keep_float", ()))
    left = (
        named_operations(model, named)
        | selection_only(model)
        | without_weight_matrix(model)
        | reads_means(model)
    )
    alpha = float(request.options.get("smooth_quant", SMOOTH_QUANT))
    samples: list[NDArray[np.float32]] = [sample[None] for sample in request.calibration]
    with _quiet(nncf):
        try:
            quantized = nncf.quantize(
                model,
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(names=sorted(left), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix.ENABLE,
                    disable_bias_correction=True,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha),
                ),
            )
        except (RuntimeError, nncf.ValidationError, nncf.InternalError) as error:
            raise JobError(
                f"NNCF {nncf.__version__} cannot quantize {request.name}: {last_line(error)}"
            ) from error
    settings = {
        "nncf": str(nncf.__version__).partition("+")[0],
        "scheme": "symmetric i8 activations x 7-bit i8 weights per channel",
        "smooth_quant": alpha,
        "calibration_samples": len(samples),
        "keep_float": named,
    }
    return quantized, settings


def selection_only(model: Any) -> set[str]:
    """Names of the operations whose results reach the outputs through the selection (`TopK`) alone."""
    names: set[str] = set()
    for operation in reversed(model.get_ordered_ops()):
        readers = [port.get_node() for output in operation.outputs() for port in output.get_target_inputs()]
        if (
            operation.get_type_name() != "Constant"
            and readers
            and all(
                reader.get_type_name() == "TopK" or reader.get_friendly_name() in names for reader in readers
            )
        ):
            names.add(operation.get_friendly_name())
    return names


def without_weight_matrix(model: Any) -> set[str]:
    """Names of the matrix products of which neither operand is a constant matrix."""
    return {
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "MatMul"
        and not any(_is_weight_matrix(operand) for operand in operation.input_values())
    }


def reads_means(model: Any) -> set[str]:
    """Names of the matrix products that read patches' means; see `quantize.means_products`."""
    names: set[str] = set()
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "MatMul":
            source = operation.input_value(0).get_node()
            while source.get_type_name() == "Reshape":
                source = source.input_value(0).get_node()
            if source.get_type_name() == "AvgPool":
                names.add(operation.get_friendly_name())
    return names


def _is_weight_matrix(operand: Any) -> bool:
    return operand.get_node().get_type_name() == "Constant" and len(operand.get_shape()) <= 2


def named_operations(model: Any, layers: Sequence[str]) -> set[str]:
    """The operations of some layers: `NAME`, and `NAME/PART` where there are several."""
    return {
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_friendly_name().partition("/")[0] in layers
    }


@contextlib.contextmanager
def _quiet(nncf: ModuleType) -> Iterator[None]:
    """Keeps NNCF's log and progress bars out of standard output, which is for results."""
    nncf.set_log_level(logging.ERROR)
    stream = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(stream):
        yield
