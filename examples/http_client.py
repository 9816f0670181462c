"""A client of Triton or OpenVINO Model Server that serve a bundle: two frames or a flow field in, a class out.

ptsr-edge export --target cpu --layout triton --out served
python examples/http_client.py http://127.0.0.1:8000 ptsr-tiny-cpu-fp32-k49 bundle.json onset.png apex.png
python examples/http_client.py http://127.0.0.1:8000 ptsr-tiny-cpu-fp32-k49 bundle.json flow.npy

Both servers speak the KServe protocol, version 2 (https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol),
and take arrays as bytes behind the JSON. From the bundle a client needs its `bundle.json`. flow.npy holds float32
(S, S, 3) or several of them, (n, S, S, 3): u, v in pixels, strain. Needs numpy; for frames also ptsr-edge and OpenCV.
"""

import json
import sys
import urllib.error
import urllib.request

import numpy as np


def normalise(sample, constants):
    """(S, S, 3) -> (1, 3, S, S) float32, by the formula under `io` in `bundle.json`."""
    u, v, strain = np.moveaxis(sample.astype(np.float64), -1, 0)
    motion = np.stack([u - np.median(u), v - np.median(v)])
    spread = np.sqrt((u.var() + v.var()) / 2)
    motion = motion / spread if spread > constants["flat"] else np.zeros_like(motion)
    strain = strain / strain.std() if strain.std() > constants["flat"] else np.zeros_like(strain)
    return np.stack([*motion, strain])[None].astype("<f4")


def infer(address, model, array):
    """Asks a server for the logits of one normalised input; `sys.exit` with what it said if it refuses."""
    described = {
        "name": "flow",
        "shape": array.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    request = json.dumps({"inputs": [described], "outputs": [{"name": "logits"}]}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(request)),
    }
    url = f"{address.rstrip('/')}/v2/models/{model}/infer"
    call = urllib.request.Request(url, request + array.tobytes(), headers)
    try:
        with urllib.request.urlopen(call, timeout=30) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code} {error.read().decode(errors='replace').strip()}")
    except urllib.error.URLError as error:
        sys.exit(f"{url}: {error.reason}")
    (logits,) = (output["data"] for output in answer["outputs"] if output["name"] == "logits")
    return np.array(logits)


def measure(onset, apex, preprocess):
    """Two pictures of one face, cropped alike -> (S, S, 3) float32, as in training."""
    import cv2

    from ptsr_edge.core.config import Preprocess
    from ptsr_edge.vision.flow import flow_sample

    frames = [cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in (onset, apex)]
    for path, frame in zip((onset, apex), frames, strict=True):
        if frame is None:
            sys.exit(f"{path} is no picture")
    return flow_sample(*frames, Preprocess.model_validate(preprocess))


def main(address, model, manifest, *source):
    with open(manifest, encoding="utf-8") as stream:  # noqa: PTH123
        bundle = json.load(stream)
    samples = np.load(source[0]) if len(source) == 1 else measure(*source, bundle["preprocess"])
    shape = tuple(bundle["io"]["sample"]["shape"])
    if samples.dtype != np.float32 or samples.shape[-3:] != shape:
        sys.exit(f"flow must be float32 {shape}, or several of them; found {samples.dtype} {samples.shape}")
    for sample in samples.reshape(-1, *shape):
        logits = infer(address, model, normalise(sample, bundle["io"]["normalisation"]["constants"]))
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        print(bundle["labels"][int(logits.argmax())], *(f"{share:.6f}" for share in shares), flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit("usage: http_client.py ADDRESS MODEL BUNDLE.JSON FLOW.NPY | ONSET APEX")
    main(*sys.argv[1:])
