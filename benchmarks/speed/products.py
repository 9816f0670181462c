"""The matrix products of an artifact alone: the limit that its runtime sets in these shapes.

Each product is cut out of the artifact as it stands there, with its constants and what dequantizes them, so that the runtime
chooses the same kernel. What was computed before it becomes an input of the graph: behind the quantization, where there is
one, so that no time goes into making int8. Biases that are nodes of their own, activations and all else are left out. Products
by constants share one input a shape, which then lies in the caches as it does behind the operator that makes it. A product of two
computed values has an input of its own, and so has a second product by the same constant: else a runtime would compute equal ones once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ptsr_edge.core.errors import JobError
from ptsr_edge.profile.roofline import CLASSES
from ptsr_edge.runtimes.onnxruntime import open_session
from ptsr_edge.runtimes.openvino import RT_SECTION, load_openvino

CUT = frozenset(CLASSES["matrix products"])
"""Operators that are products, in ONNX Runtime's and OpenVINO's names."""

DEQUANTIZE = "DequantizeLinear"


def cut_products(target: str, artifact: Path, out: Path) -> int:
    """Writes the graph of an artifact's products; returns how many they are.

    Raises:
        JobError: it has none, or ONNX Runtime refuses the artifact.
    """
    count = {"cpu": cut_onnx, "openvino": cut_openvino}[target](artifact, out)
    if not count:
        raise JobError(f"{artifact.name} has no matrix product")
    return count


def cut_onnx(artifact: Path, out: Path) -> int:
    """Cuts the products out of an ONNX graph of fixed shapes; see the module."""
    import onnx
    from onnx import helper

    model = onnx.load(str(artifact))
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in CUT]
    if not products:
        return 0
    values = computed_values(model, products)
    nodes: list[Any] = []
    inputs: dict[str, Any] = {}
    outputs: list[Any] = []
    used: dict[str, Any] = {}

    def given(name: str, own: str) -> str:
        """An input of the graph that stands for a computed value."""
        kind, shape = values[name]
        new = f"given-{own or 'shared'}-{kind}-{'x'.join(map(str, shape))}"
        inputs[new] = helper.make_tensor_value_info(new, kind, shape)
        return new

    def source(name: str, own: str, place: str) -> str:
        if not name or name in constants:
            used.update({name: constants[name]} if name else {})
            return name
        maker = makers.get(name)
        if maker is None or maker.op_type != DEQUANTIZE:
            return given(name, own)
        new = onnx.NodeProto()
        new.CopyFrom(maker)
        first = maker.input[0]
        behind = source(first, own, place) if first in constants else given(first, own)
        used.update({other: constants[other] for other in maker.input[1:]})
        new.name, new.output[0], new.input[0] = f"{place}/dequantize", f"{place}/dequantized", behind
        nodes.append(new)
        return new.output[0]

    count = 0
    met: set[tuple[str, ...]] = set()
    for node in products:
        computed = [name for name in node.input if name and _root(name, makers) not in constants]
        by = tuple(_root(name, makers) for name in node.input if name not in computed)
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for place, name in enumerate(node.input):
            own = str(count) if (len(computed) > 1 or by in met) and name == computed[-1] else ""
            new.input[place] = source(name, own, f"{count}/{place}")
        met.add(by)
        new.output[:] = [f"product-{count}"]
        nodes.append(new)
        outputs.append(helper.make_tensor_value_info(new.output[0], *values[node.output[0]]))
        count += 1
    cut = helper.make_graph(nodes, "products", list(inputs.values()), outputs, list(used.values()))
    made = helper.make_model(cut, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(made)
    out.write_bytes(made.SerializeToString())
    return count


def computed_values(model: Any, products: Sequence[Any]) -> dict[str, tuple[int, list[int]]]:
    """Returns type and shape of what products read and make, by running the graph: inference knows no fused operator's."""
    import onnx
    from onnx import helper

    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    wanted = {name for node in products for name in (*node.input, node.output[0]) if name}
    wanted |= {
        makers[name].input[0] for name in wanted if name in makers and makers[name].op_type == DEQUANTIZE
    }
    given = {
        value.name: np.zeros([axis.dim_value for axis in value.type.tensor_type.shape.dim], np.float32)
        for value in model.graph.input
    }
    names = sorted(wanted - constants - set(given))
    telling = onnx.ModelProto()
    telling.CopyFrom(model)
    del telling.graph.output[:]
    telling.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(telling.SerializeToString(), optimize=False)
    found = given | dict(zip(names, session.run(names, given), strict=True))
    return {
        name: (helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape))
        for name, value in found.items()
    }


def _root(name: str, makers: dict[str, Any]) -> str:
    """Returns what a value was dequantized from, or its own name."""
    while (maker := makers.get(name)) is not None and maker.op_type == DEQUANTIZE:
        name = maker.input[0]
    return name


def cut_openvino(artifact: Path, out: Path) -> int:
    """Cuts the products out of an IR; see the module."""
    ov = load_openvino()
    ops = ov.opset13
    model = ov.Core().read_model(artifact)
    operations = model.get_ordered_ops()
    constant: set[str] = set()
    for operation in operations:
        sources = {value.get_node().get_friendly_name() for value in operation.input_values()}
        if operation.get_type_name() == "Constant" or (sources and constant.issuperset(sources)):
            constant.add(operation.get_friendly_name())
    half = str(model.get_rt_info([RT_SECTION, "precision"]).astype(str)) == "bf16"
    given: dict[tuple[Any, ...], Any] = {}

    def new_input(shape: list[int], kind: Any, own: str) -> Any:
        key = (own, kind.get_type_name(), *shape)
        if key not in given:
            given[key] = ops.parameter(shape, kind)
        return ops.convert(given[key], ov.Type.f32) if kind != ov.Type.f32 else given[key]

    def stand_in(value: Any, own: str) -> Any:
        """What a product reads in place of a computed value: int8 behind its quantization, or as the arithmetic is."""
        maker, shape = value.get_node(), list(value.get_shape())
        if maker.get_type_name() != "FakeQuantize":
            return new_input(shape, ov.Type.bf16 if half else ov.Type.f32, own)
        low, high = (np.asarray(maker.input_value(place).get_node().data).item() for place in (1, 2))
        step = np.float32((high - low) / (maker.get_attributes()["levels"] - 1))
        return ops.multiply(new_input(shape, ov.Type.i8 if low < 0 else ov.Type.u8, own), step)

    products = [
        operation for operation in operations
        if operation.get_type_name() in CUT and operation.get_friendly_name() not in constant
    ]  # fmt: skip
    quantized = False
    met: set[tuple[bytes, ...]] = set()
    for number, product in enumerate(products):
        makers = [value.get_node() for value in product.input_values()]
        computed = [place for place, maker in enumerate(makers) if maker.get_friendly_name() not in constant]
        by = tuple(_constant_bytes(maker) for place, maker in enumerate(makers) if place not in computed)
        for place in computed:
            own = str(number) if (len(computed) > 1 or by in met) and place == computed[-1] else ""
            quantized |= makers[place].get_type_name() == "FakeQuantize"
            taken = stand_in(product.input_value(place), own)
            product.input(place).replace_source_output(taken.output(0))
        met.add(by)
    if not products:
        return 0
    ends = [ops.convert(one.output(0), ov.Type.bf16).output(0) if half else one.output(0) for one in products]
    if quantized:
        # OpenVINO looks for int8 products only in a model that quantizes something.
        tiny = ops.parameter([1], ov.Type.f32)
        given["tiny",] = tiny
        bounds = [ops.constant(np.float32(end)) for end in (-1, 1, -1, 1)]
        ends.append(ops.fake_quantize(tiny, *bounds, 255).output(0))
    cut = ov.Model([ops.result(end) for end in ends], list(given.values()), "products")
    ov.save_model(cut, out, compress_to_fp16=False)
    return len(products)


def _constant_bytes(node: Any) -> bytes:
    """Returns the content of a constant, through what converts it."""
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return np.asarray(node.data).tobytes()
