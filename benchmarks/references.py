"""`ptsr-tiny` through its int8 artifact beside the full-token ViT and simple classifiers.

    python -m ptsr_edge.export --precision fp32,int8 --budgets 0.25 --with-baseline --out out/tiny
    python benchmarks/references.py --bundle out/tiny --root DIR

All are trained on the people that the bundle's model was trained on, of the data `faces`, and judged on people that no
training and no choice has seen: the rendered ones of `synthetic` and as many of `ict-face` beyond those of `faces`. The
others: the baseline in fp32 and int8, an RBF support vector machine and logistic regression on flows averaged down to
14 x 14, and the read-outs of patches' means without a PTSR: linear, and PTSR's own, trained by its recipe. UF1, and the
difference of PTSR's to each with a 95 % interval over people. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from reference_learners import SvmLearner, fit_means, fit_means_alone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ptsr_edge.bundle import baseline_place, read_bundle
from ptsr_edge.core.config import named_model
from ptsr_edge.data import morphable_face
from ptsr_edge.data.datasets import DRAWN, FlowDataset, join, load
from ptsr_edge.evaluate.evaluation import evaluate_session
from ptsr_edge.models.checkpoint import predict_logits
from ptsr_edge.session import open_variant
from ptsr_edge.stats.classification import confusion, paired_bootstrap, uf1
from ptsr_edge.train.trainer import TRAIN_CONFIGS
from ptsr_edge.vision.flow import normalise, resize, to_input

SIDE = 14
OURS = "ptsr-tiny-cpu-int8-k49"
Answers = NDArray[np.int64]


def features(flows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, S, S, 3) flows -> (n, 14 * 14 * 3) normalised and averaged down."""
    return np.stack([resize(normalise(sample[None])[0], SIDE).ravel() for sample in flows])


def simple(training: FlowDataset, judged: FlowDataset) -> dict[str, Answers]:
    """Returns the answers of what is simpler than a transformer."""
    found = {
        f"RBF SVM, C = {c}": SvmLearner(c=c).answer(training, judged, seed=0)["logits"][0].argmax(1)
        for c in (1, 3)
    }
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    linear.fit(features(training.flows), training.labels)
    found["logistic regression"] = linear.predict(features(judged.flows))
    config = named_model("ptsr-tiny")
    readout = fit_means(config.model_copy(update={"mean_hidden": 0}), training)
    with torch.no_grad():
        found["means alone, linear"] = readout(torch.from_numpy(to_input(judged.flows))).argmax(dim=1).numpy()
    alone = fit_means_alone(config, training, TRAIN_CONFIGS["tiny"])
    found["means alone, PTSR's read-out"] = predict_logits(alone, judged.flows)[0].argmax(1)  # type: ignore[arg-type]
    return found


def artifacts(bundle: Path, judged: FlowDataset) -> dict[str, Answers]:
    """Returns the answers of every variant of a bundle and of its baseline."""
    return {
        variant.id: evaluate_session(open_variant(folder, variant, threads=2), judged)
        for folder in (bundle, baseline_place(bundle))
        for variant in read_bundle(folder).variants
    }


def never_seen(root: Path) -> FlowDataset:
    """Returns the clips of people who are not in `faces`, rendered and drawn ones."""
    rendered = load("synthetic", image_size=112)
    people = morphable_face.subject_names()[DRAWN:][: len(rendered.subject_names)]
    clips = len(rendered) // len(rendered.subject_names)
    return join([rendered, load("ict-face", root, image_size=112, subjects=people, limit=clips)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bundle", type=Path, required=True, help="of ptsr-tiny; its baseline lies beside it"
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of ict_face.npz")
    options = parser.parse_args()
    said = read_bundle(options.bundle).provenance
    judged = never_seen(options.root)
    training = load("faces", options.root, image_size=112, subjects=said["train_subjects"])
    found = artifacts(options.bundle, judged) | simple(training, judged)
    rendered = np.char.startswith(judged.subjects, "synthetic/")
    sides = {"all": np.ones(len(judged), dtype=bool), "rendered": rendered, "drawn": ~rendered}
    counts = [
        f"{name} ({len(set(judged.subjects[side]))} people, {side.sum()} clips)"
        for name, side in sides.items()
    ]
    print(f"| UF1 | {' | '.join(counts)} | {OURS} is ahead by |")
    print(f"|---|{'---:|' * len(sides)}---|")
    for name, answers in found.items():
        scores = [uf1(confusion(judged.labels[side], answers[side], 3)) for side in sides.values()]
        ahead = paired_bootstrap(judged.labels, found[OURS], answers, judged.subjects, "uf1")
        told = "" if name == OURS else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*ahead)
        print(f"| {name} | {' | '.join(f'{score:.3f}' for score in scores)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
