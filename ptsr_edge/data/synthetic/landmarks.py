"""The points of the base face that action units move: where they are and how far from the turning axis."""

from __future__ import annotations

import numpy as np

_PAIRED = {
    # Image-left landmark: (its place, the place of its image-right partner), in fractions of the side.
    "brow_inner": ((0.400, 0.252), (0.605, 0.247)),
    "brow_mid": ((0.280, 0.222), (0.730, 0.230)),
    "brow_outer": ((0.200, 0.245), (0.810, 0.255)),
    "forehead": ((0.330, 0.150), (0.670, 0.150)),
    "lid_crease": ((0.305, 0.268), (0.685, 0.268)),
    "eye_top": ((0.305, 0.295), (0.685, 0.295)),
    "eye_bottom": ((0.310, 0.365), (0.690, 0.365)),
    "eye_inner": ((0.400, 0.335), (0.595, 0.335)),
    "eye_outer": ((0.210, 0.330), (0.800, 0.330)),
    "nose_side": ((0.440, 0.440), (0.565, 0.440)),
    "nose_wing": ((0.400, 0.575), (0.600, 0.570)),
    "cheek": ((0.275, 0.470), (0.740, 0.470)),
    "cheek_outer": ((0.165, 0.430), (0.860, 0.430)),
    "nasolabial": ((0.310, 0.575), (0.695, 0.570)),
    "mouth_corner": ((0.325, 0.655), (0.695, 0.648)),
    "upper_lip_side": ((0.410, 0.655), (0.600, 0.650)),
    "lower_lip_side": ((0.405, 0.740), (0.585, 0.735)),
    "chin_side": ((0.360, 0.850), (0.610, 0.850)),
    "jaw": ((0.220, 0.820), (0.790, 0.820)),
}
_CENTRAL = {
    "glabella": (0.500, 0.245),
    "nose_root": (0.500, 0.330),
    "nose_tip": (0.505, 0.540),
    "upper_lip": (0.500, 0.655),
    "lower_lip": (0.490, 0.760),
    "chin_boss": (0.485, 0.860),
    "chin": (0.480, 0.945),
}
_RIM = [(x, y) for x in (0.0, 0.33, 0.67, 1.0) for y in (0.0, 0.33, 0.67, 1.0) if x in (0, 1) or y in (0, 1)]

_DEPTH = {
    "nose_tip": 0.30, "nose_wing": 0.23, "nose_side": 0.22, "nose_root": 0.19, "glabella": 0.20,
    "upper_lip": 0.22, "upper_lip_side": 0.20, "lower_lip": 0.21, "lower_lip_side": 0.19,
    "chin_boss": 0.20, "chin": 0.17, "chin_side": 0.16, "mouth_corner": 0.15, "nasolabial": 0.15,
    "cheek": 0.15, "brow_inner": 0.19, "brow_mid": 0.16, "brow_outer": 0.11, "forehead": 0.17,
    "lid_crease": 0.15, "eye_top": 0.15, "eye_bottom": 0.14, "eye_inner": 0.15, "eye_outer": 0.11,
    "cheek_outer": 0.05, "jaw": 0.05,
}  # fmt: skip
"""How far each landmark stands before the ears, in fractions of the side."""

LANDMARKS: tuple[str, ...] = (
    *(f"{name}.left" for name in _PAIRED),
    *(f"{name}.right" for name in _PAIRED),
    *_CENTRAL,
)
"""Names in the order of a subject's landmarks; left and right are the image's."""

PLACES = np.array(
    [pair[0] for pair in _PAIRED.values()] + [pair[1] for pair in _PAIRED.values()] + list(_CENTRAL.values())
)
RIM_PLACES = np.array(_RIM)
DEPTHS = np.array([_DEPTH[name.partition(".")[0]] for name in LANDMARKS])
PAIRS = len(_PAIRED)
"""How many landmarks have a partner on the other side; those of the image-left side come first."""
