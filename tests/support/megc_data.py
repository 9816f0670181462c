"""A folder in the layout of `megc-flow` whose pictures are noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_megc(root: Path) -> Path:
    """Writes 6 subjects with 6 clips, two of each class."""
    images = root / "STSNet_whole_norm_u_v_os"
    images.mkdir(parents=True)
    rows = ["dataset,sub,filename_o,label"]
    generator = np.random.default_rng(0)
    for subject in range(6):
        for clip in range(6):
            rows.append(f"casme2,sub{subject:02d},clip{clip},{clip % 3}")
            pixels = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            cv2.imwrite(str(images / f"sub{subject:02d}_clip{clip} .png"), pixels)
    (root / "combined_3_class2_for_optical_flow.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
