"""Target `openvino`: fp32 ONNX graphs become OpenVINO IR that says how it is to be run.

Its precisions, each with its arithmetic named in the IR and read back after compiling:

    fp32   float32 weights, calculated in float32
    fp16   float16 weights, calculated in float16 where the CPU can, else in float32
    bf16   float16 weights, calculated in bfloat16, which the CPU must offer
    int8   8-bit weights and activations by NNCF, all else in float32

In every precision what only serves the scores that tokens are selected by is calculated in float32: rounded to 11
or 8 bits, close scores change their order, and a token in another's place moves the logits more than all other
rounding does.

The IRs of one precision read their constants from one weights file, each distinct constant once. Each IR has that file
beside it under its own name, as every tool of OpenVINO looks for it; the names are hard links where the file system
has them. fp16 and bf16 have the same weights, and so the same file.

No IR can say what it is to be calculated in: left alone, OpenVINO (2026.4) takes bfloat16 on a CPU that has it, for
float32 weights too, and float32 elsewhere; it reads no such entry of `rt_info`, and layers marked `precise` run in
bfloat16 all the same where they are large products. So an artifact's `runs_on` has under `config` what
`Core.compile_model`, Model API and servers are to be told.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import link_file, scratch_folder, write_whole
from ptsr_edge.export.config import OpenVinoOptions
from ptsr_edge.export.onnx_graph import MEANS, layer_of
from ptsr_edge.export.targets.base import (
    Artifact,
    BuildRequest,
    TargetOptions,
    read_options,
    variant_id,
)
from ptsr_edge.runtimes.openvino import (
    RT_SECTION,
    OpenVinoRunner,
    can_calculate,
    last_line,
    load_openvino,
    require_silenced,
)

INFERENCE_PRECISION = {"fp32": "f32", "fp16": "f16 f32", "bf16": "bf16", "int8": "f32"}
"""What each precision is calculated in; of several, the first that the CPU can."""

HALF_WEIGHTS = ("fp16", "bf16")

ALIGNMENT = 64
"""Where a shared constant starts, in bytes: a cache line."""


class OpenVinoTarget:
    """Builds IR, version 11, for every CPU that OpenVINO runs on."""

    name = "openvino"
    precisions = tuple(INFERENCE_PRECISION)
    options: type[TargetOptions] = OpenVinoOptions

    def check_tools(self, precisions: Sequence[str]) -> None:
        """See `ChecksTools.check_tools`."""
        load_openvino("exporting for target openvino")
        if "int8" in precisions:
            load_nncf()

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        """See `Target.build`: an IR per token count, and one weights file for all, under the name of each.

        Raises:
            InputError: an option or precision is not known, no calibration samples for int8, or an unknown layer.
            MissingExtraError: openvino is not installed, or nncf for int8.
            JobError: OpenVINO or NNCF refuses a graph, what was built runs in another precision, or a file
                cannot be written.
        """
        options = read_options(self, OpenVinoOptions, request)
        ov = load_openvino()
        paths: dict[int, Path] = {}
        settings: dict[str, Any] = {}
        unknown = set(options.keep_float)
        with scratch_folder() as scratch:
            pool = WeightsPool()
            for tokens, graph in progress(request.graphs.items(), f"openvino {request.precision}"):
                ident = variant_id(request.name, self.name, request.precision, tokens)
                model = read_onnx(ov, graph.path)
                unknown -= {name for name in unknown if named_operations(model, [name])}
                if request.precision == "int8":
                    model, settings = quantize(model, request.calibration, options, request.name)
                name_by_place(model)
                precise = selection_only(model) if request.precision in HALF_WEIGHTS else ()
                annotate(ov, model, request, ident)
                single = scratch / f"{ident}.xml"
                save(ov, model, single, request.precision)
                paths[tokens] = request.folder / single.name
                write_whole(paths[tokens], pool.move_constants(single, precise))
                single.with_suffix(".bin").unlink()
        if unknown:
            raise InputError(
                f"keep_float names {sorted(unknown)[0]!r}, which is a layer of none of the graphs"
            )
        write_weights(bytes(pool.content), list(paths.values()), f"{request.name}-{self.name}-*.bin")
        built_with = {"openvino": _version(ov), **settings}
        return {tokens: self._describe(path, request, built_with) for tokens, path in paths.items()}

    def runner(self, artifact: Artifact, threads: int | None) -> OpenVinoRunner | None:
        """See `Target.runner`: None where this CPU cannot calculate in the artifact's precision."""
        if not can_calculate(str(artifact.runs_on["inference_precision"]).split()):
            return None
        return OpenVinoRunner(artifact.path, threads)

    def _describe(self, path: Path, request: BuildRequest, built_with: Mapping[str, Any]) -> Artifact:
        wanted = INFERENCE_PRECISION[request.precision]
        ran: dict[str, Any] | None = None
        if can_calculate(wanted.split()):
            runner = OpenVinoRunner(path, threads=1)
            ran = {
                "inference_precision": runner.inference_precision,
                "matrix_products": runner.matrix_products,
            }
        return Artifact(
            path=path,
            files=[path, path.with_suffix(".bin")],
            built_with={**built_with, "weights": _weights_type(request.precision), "read_back": ran},
            runs_on={
                "runtime": "openvino",
                "device": "CPU",
                "inference_precision": wanted,
                # Of several types the last one is what every CPU has.
                "config": {"INFERENCE_PRECISION_HINT": wanted.split()[-1]},
            },
        )


def write_weights(content: bytes, irs: Sequence[Path], others: str) -> None:
    """Writes the weights of some IRs beside each under its name: one file on the disk where there are hard links.

    Args:
        content: of the file.
        irs: which read it.
        others: pattern of files in the same folder; one that has the same content already is linked to.

    Raises:
        JobError: a file cannot be written.
    """
    folder = irs[0].parent
    there = [path for path in sorted(folder.glob(others)) if path.stat().st_size == len(content)]
    first = next((path for path in there if path.read_bytes() == content), None)
    for ir in irs:
        path = ir.with_suffix(".bin")
        if first is None:
            write_whole(path, content)
            first = path
        elif path != first:
            link_file(first, path)


def quantize(
    model: Any, calibration: NDArray[np.float32], options: OpenVinoOptions, name: str
) -> tuple[Any, dict[str, Any]]:
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
    if not len(calibration):
        raise InputError("int8 needs calibration samples, got none")
    nncf = load_nncf()
    named = sorted(options.keep_float)
    left = (
        named_operations(model, named)
        | selection_only(model)
        | without_weight_matrix(model)
        | named_operations(model, MEANS)
    )
    samples: list[NDArray[np.float32]] = [sample[None] for sample in calibration]
    with _quiet():
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
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=options.smooth_quant),
                ),
            )
        except (RuntimeError, nncf.ValidationError, nncf.InternalError) as error:
            raise JobError(f"NNCF {nncf.__version__} cannot quantize {name}: {last_line(error)}") from error
    settings = {
        "nncf": str(nncf.__version__).partition("+")[0],
        "scheme": "symmetric i8 activations x 7-bit i8 weights per channel",
        "smooth_quant": options.smooth_quant,
        "calibration_samples": len(samples),
        "keep_float": named,
    }
    return quantized, settings


def load_nncf() -> ModuleType:
    """Imports `nncf`, its telemetry off.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    return require_silenced("nncf", "openvino-build", "quantizing for OpenVINO")


def selection_only(model: Any) -> set[str]:
    """Returns the names of the operations whose results reach the outputs through the selection (`TopK`) alone."""
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
    """Returns the names of the matrix products of which neither operand is a constant matrix."""
    return {
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "MatMul"
        and not any(_is_weight_matrix(operand) for operand in operation.input_values())
    }


def _is_weight_matrix(operand: Any) -> bool:
    return operand.get_node().get_type_name() == "Constant" and len(operand.get_shape()) <= 2


def named_operations(model: Any, layers: Sequence[str]) -> set[str]:
    """Returns the names of the operations of some layers: `NAME`, and `NAME/PART` where there are several."""
    return {
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if layer_of(operation.get_friendly_name()) in layers
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps NNCF's log and progress bars out of standard output, which is for results.

    `nncf.set_log_level` would also set the handlers that others have added to its logger, and for good.
    """
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    stream = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        log.setLevel(level)


class WeightsPool:
    """Constants of several IRs in one stretch of bytes, each distinct one once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[str, int] = {}

    def move_constants(self, xml: Path, precise: Collection[str] = ()) -> str:
        """Takes over the constants of an IR; returns the text of the IR with their offsets in the pool.

        An IR's `Const` layers name their constant by `offset` and `size` in the weights file.

        Args:
            xml: the IR, its own weights file beside it.
            precise: operations to be calculated in float32 whatever the rest is; see `keep_precise`.

        Raises:
            JobError: not all of the IR is there.
        """
        own = xml.with_suffix(".bin").read_bytes()
        try:
            root = ElementTree.parse(xml).getroot()
        except ElementTree.ParseError as error:
            raise JobError(f"cannot write {xml}: not all of it is there ({error})") from error
        for data in root.iterfind(".//layer[@type='Const']/data"):
            start, size = int(data.attrib["offset"]), int(data.attrib["size"])
            if start + size > len(own):
                raise JobError(
                    f"{xml.name} names bytes {start} to {start + size} of {len(own)} bytes of weights"
                )
            data.set("offset", str(self._place(own[start : start + size])))
        keep_precise(root, precise)
        for section in root.iterfind("rt_info"):
            for copied in section.findall("framework"):
                section.remove(copied)  # the ONNX file's metadata: `model_info` says the same
        ElementTree.indent(root, space="")
        return '<?xml version="1.0"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"

    def _place(self, constant: bytes) -> int:
        key = hashlib.sha256(constant).hexdigest()
        if key not in self._places:
            self.content.extend(b"\0" * (-len(self.content) % ALIGNMENT))
            self._places[key] = len(self.content)
            self.content.extend(constant)
        return self._places[key]


def keep_precise(root: ElementTree.Element, names: Collection[str]) -> None:
    """Gives layers of an IR the attribute `precise`, in place: OpenVINO then leaves them in float32.

    It is how an IR writes the attribute `DisableFP16Compression` of an operation, which Python cannot set.
    """
    for layer in root.iterfind(".//layer"):
        if layer.get("name") not in names:
            continue
        section = layer.find("rt_info")
        if section is None:
            section = ElementTree.Element("rt_info")
            layer.insert(sum(child.tag == "data" for child in layer), section)
        ElementTree.SubElement(section, "attribute", {"name": "precise", "version": "0"})


def save(ov: ModuleType, model: Any, path: Path, precision: str) -> None:
    """Writes an IR, its constants in the type that a precision has.

    Raises:
        JobError: it cannot be written (no room, no permission); OpenVINO does not say which.
    """
    try:
        ov.save_model(model, path, compress_to_fp16=precision in HALF_WEIGHTS)
    except RuntimeError as error:
        raise JobError(f"cannot write {path}: {last_line(error)}; is there room?") from error


def read_onnx(ov: ModuleType, graph: Path) -> Any:
    """Reads an ONNX graph with the weights beside it.

    Raises:
        JobError: the file is missing, no ONNX, or has an operator that OpenVINO lacks.
    """
    try:
        model = ov.Core().read_model(graph)
    except RuntimeError as error:
        raise JobError(f"OpenVINO {_version(ov)} cannot read {graph.name}: {last_line(error)}") from error
    keep_reduced_axes(ov, model)
    return model


def keep_reduced_axes(ov: ModuleType, model: Any) -> None:
    """Makes each reduction keep its axes, and a squeeze drop them: the same result.

    OpenVINO's CPU plugin (2025.4 to 2026.4) leaves out a transpose or reshape that follows a reduction which
    drops its axes: (k, 1) is then added where (1, k) is meant, without an error
    (https://github.com/openvinotoolkit/openvino/issues/37959).
    """
    for reduction in model.get_ordered_ops():
        if reduction.get_attributes().get("keep_dims", True):
            continue
        readers = list(reduction.output(0).get_target_inputs())
        reduction.set_attribute("keep_dims", True)
        reduction.constructor_validate_and_infer_types()
        squeezed = ov.opset13.squeeze(reduction.output(0), reduction.input_value(1))
        # Otherwise a counter of the process names it, and what NNCF notes of its name is another one in each build.
        squeezed.set_friendly_name(f"{reduction.get_friendly_name()}/squeeze")
        for reader in readers:
            reader.replace_source_output(squeezed.output(0))
    model.validate_nodes_and_infer_types()


def annotate(ov: ModuleType, model: Any, request: BuildRequest, ident: str) -> None:
    """Writes into `rt_info` what the model is, how it wants to be run, and what others' tools read."""
    model.set_friendly_name(ident)
    model.get_parameters()[0].set_layout(ov.Layout("NCHW"))
    model.set_rt_info(request.precision, [RT_SECTION, "precision"])
    model.set_rt_info(INFERENCE_PRECISION[request.precision], [RT_SECTION, "inference_precision"])
    for key, value in model_info(request.labels, request.preprocess).items():
        model.set_rt_info(value, ["model_info", key])


def model_info(labels: Sequence[str], preprocess: Preprocess) -> dict[str, str]:
    """Returns the section of that name as OpenVINO's Model API and DL Streamer read it.

    Both part labels by blanks. Neither knows a normalisation by median and deviation: they are told to pass
    float32 samples (S, S, 3) as they come, and `preprocess` says how such a sample is made.
    """
    return {
        "model_type": "Classification",
        "labels": " ".join(label.replace(" ", "_") for label in labels),
        "multilabel": "False",
        "hierarchical": "False",
        "output_raw_scores": "True",
        "input_dtype": "f32",
        "resize_type": "standard",
        "input_frame_height": str(preprocess.image_size),
        "input_frame_width": str(preprocess.image_size),
        "reverse_input_channels": "False",
        "preprocess": json.dumps(preprocess.model_dump(mode="json"), sort_keys=True),
    }


def name_by_place(model: Any) -> None:
    """Names what OpenVINO and NNCF named by a counter of the process (`Constant_47471`) by its place.

    Otherwise no two builds would be the same bytes.
    """
    for place, operation in enumerate(model.get_ordered_ops()):
        kind, _, count = operation.get_friendly_name().rpartition("_")
        if kind == operation.get_type_name() and count.isdigit():
            operation.set_friendly_name(f"{kind}_at_{place}")


def _version(ov: ModuleType) -> str:
    return str(ov.__version__).partition("-")[0]


def _weights_type(precision: str) -> str:
    return "i8" if precision == "int8" else "f16" if precision in HALF_WEIGHTS else "f32"
