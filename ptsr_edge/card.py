"""What a bundle says of its own use: the model card in its manifest."""

from __future__ import annotations

LAW = (
    "Where law forbids it, do not use it: in the European Union, Regulation (EU) 2024/1689, article 5(1)(f), prohibits "
    "AI systems that infer emotions of people at the workplace and in education, other than for medical or safety "
    "reasons; elsewhere there emotion recognition is high-risk (Annex III), and people must be told of it (article 50(3))"
)

EVIDENCE = (
    "A class is what a movement of the face resembles, no evidence of what a person feels, thinks or intends: no "
    "decision about a person may rest on it"
)


def bundle_card(trained: str | None) -> str:
    """The model card.

    Args:
        trained: what the checkpoint says of its training, such as `train.model_card`; None where it says nothing.
    """
    return f"{trained or 'training unknown'}. {EVIDENCE}. {LAW}."
