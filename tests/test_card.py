from __future__ import annotations

from ptsr_edge.bundle import bundle_card
from ptsr_edge.data.datasets import DATASETS


def test_a_card_says_training_use_and_law() -> None:
    card = bundle_card(DATASETS["synthetic"].card)
    assert card.startswith("trained on synthetic faces rendered by ptsr-edge itself")
    for part in ("no decision about a person", "(EU) 2024/1689", "article 5(1)(f)", "workplace", "education"):
        assert part in card
    assert "\n" not in card
    assert bundle_card(None).startswith("training unknown. ")
