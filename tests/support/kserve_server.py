"""A server of the KServe protocol, version 2, over HTTP on loopback: the model repositories of Triton and OVMS, run by
plain ONNX Runtime or OpenVINO. Test material: the servers themselves are no Python packages.

It takes what the protocol and its extension for binary data say, and refuses everything else, as the servers do.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]

TYPES = {"float32": "FP32", "int64": "INT64"}


class RefusedError(Exception):
    """A request that is not what the protocol says: answered by 400."""


def load_model(folder: Path) -> tuple[Run, tuple[int, ...]]:
    """Loads the model of a repository's folder; what runs it, and the shape of its input `flow`."""
    graphs = sorted(
        path for path in (folder / "1").rglob("model.*") if path.is_file() and path.suffix != ".bin"
    )
    (path,) = graphs
    if path.suffix == ".onnx":
        import onnxruntime as ort

        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        shape = tuple(session.get_inputs()[0].shape)
        return lambda flow: dict(zip(names, session.run(names, {"flow": flow}), strict=True)), shape
    from ptsr_edge.runtimes.openvino import load_openvino

    config = json.loads((folder.parent / "config.json").read_text(encoding="utf-8"))
    (settings,) = [
        entry["config"]["plugin_config"]
        for entry in config["model_config_list"]
        if entry["config"]["base_path"] == folder.name
    ]
    compiled = load_openvino().Core().compile_model(path, "CPU", settings)

    def run(flow: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        answer = compiled([flow])
        return {output.get_any_name(): np.array(answer[output]) for output in compiled.outputs}

    return run, tuple(compiled.inputs[0].shape)


def read_input(header: dict[str, Any], data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if unknown := header.keys() - {"id", "parameters", "inputs", "outputs"}:
        raise RefusedError(f"unknown {sorted(unknown)}")
    if [one.get("name") for one in header.get("inputs", [])] != ["flow"]:
        raise RefusedError("expected the one input 'flow'")
    (given,) = header["inputs"]
    if given.get("datatype") != "FP32" or tuple(given.get("shape", ())) != shape:
        raise RefusedError(f"expected FP32 {list(shape)}, got {given.get('datatype')} {given.get('shape')}")
    size = given.get("parameters", {}).get("binary_data_size")
    if ("data" in given) == (size is not None):
        raise RefusedError("an input has either data or binary_data_size")
    if "data" in given:
        values = np.array(given["data"], np.float32)
    elif size == len(data):
        values = np.frombuffer(data, "<f4")
    else:
        raise RefusedError(f"binary_data_size is {size}, {len(data)} bytes came")
    if values.size != np.prod(shape):
        raise RefusedError(f"expected {int(np.prod(shape))} elements, got {values.size}")
    return values.reshape(shape)


@contextmanager
def serving(repository: Path) -> Iterator[str]:
    """Serves all models of a repository; yields the address."""
    models = {
        folder.name: load_model(folder) for folder in sorted(repository.iterdir()) if (folder / "1").is_dir()
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            body = self.rfile.read(int(self.headers["Content-Length"]))
            split = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            name = self.path.removeprefix("/v2/models/").removesuffix("/infer")
            if name not in models or self.path != f"/v2/models/{name}/infer":
                return self.reply(404, {"error": f"Request for unknown model: {name!r} is not found"})
            run, shape = models[name]
            try:
                header = json.loads(body[:split])
                answers = run(read_input(header, body[split:], shape))
                wanted = [one["name"] for one in header.get("outputs", [])] or list(answers)
                if unknown := set(wanted) - answers.keys():
                    raise RefusedError(f"unexpected inference output {sorted(unknown)}")
            except (RefusedError, json.JSONDecodeError) as error:
                return self.reply(400, {"error": str(error)})
            outputs = [
                {
                    "name": output,
                    "datatype": TYPES[str(answers[output].dtype)],
                    "shape": list(answers[output].shape),
                    "data": answers[output].ravel().tolist(),
                }
                for output in wanted
            ]
            return self.reply(200, {"model_name": name, "model_version": "1", "outputs": outputs})

        def reply(self, code: int, record: dict[str, Any]) -> None:
            body = json.dumps(record).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing: the output is the tests'."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
