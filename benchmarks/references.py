"""Simple classifiers on the data that the embedded weights are judged on: what a transformer has to beat.

    python benchmarks/references.py

An RBF support vector machine and logistic regression on flows averaged down to 14 x 14, and the linear read-out of
patches' means that PTSR has, by itself, trained on the subjects that `ptsr-tiny` was trained on and judged on those
that it never saw. Needs scikit-learn.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from reference_learners import fit_means
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ptsr_edge.core.config import named_model
from ptsr_edge.data.datasets import HELD_OUT, load, split_subjects
from ptsr_edge.stats.classification import confusion, uar, uf1
from ptsr_edge.vision.flow import normalise, resize, to_input

SIDE = 14


def features(flows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, S, S, 3) flows -> (n, 14 * 14 * 3) normalised and averaged down."""
    return np.stack([resize(sample, SIDE).ravel() for sample in normalise(flows)])


def main() -> None:
    data = load("synthetic", image_size=112)
    train, held = split_subjects(data.subjects, HELD_OUT, seed=0)
    seen, judged = data.of_subjects(train), data.of_subjects(held)
    inputs, targets = features(seen.flows), features(judged.flows)
    for name, model in (
        ("RBF SVM, C = 1", SVC(C=1)),
        ("RBF SVM, C = 3", SVC(C=3)),
        ("logistic regression", LogisticRegression(C=0.01, max_iter=1000)),
    ):
        fitted = make_pipeline(StandardScaler(), model).fit(inputs, seen.labels)
        table = confusion(judged.labels, fitted.predict(targets), len(data.label_names))
        print(f"{name:32}  UF1 {uf1(table):.3f}  UAR {uar(table):.3f}  (n = {len(judged)})")
    readout = fit_means(named_model("ptsr-tiny"), seen)
    with torch.no_grad():
        answers = readout(torch.from_numpy(to_input(judged.flows))).argmax(dim=1).numpy()
    table = confusion(judged.labels, answers, len(data.label_names))
    print(
        f"{'means alone, 1,764 multiply-adds':32}  UF1 {uf1(table):.3f}  UAR {uar(table):.3f}  (n = {len(judged)})"
    )


if __name__ == "__main__":
    main()
