"""EViT and ToMe as the benchmark writes them, on tokens whose results follow from the papers by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from speed.token_reduction import Keep, Merge, ReducedVit, attend, keep_attended, merge_similar, reductions
from torch import Tensor

from ptsr_edge.core.config import named_model
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.models.ptsr import Attention, Vit, build_model
from ptsr_edge.runtimes.onnxruntime import open_session


def vit(size: str) -> Vit:
    model = build_model(named_model(f"vit-{size}")).requires_grad_(False)
    assert isinstance(model, Vit)
    return model


def flow(model: Vit) -> Tensor:
    return torch.randn(1, *model.config.input_shape, generator=torch.Generator().manual_seed(0))


def test_what_reduces_nothing_is_the_vit() -> None:
    model = vit("nano")
    given = flow(model)
    expected = model(given).logits
    for steps in ({}, {0: Keep(49)}, {0: Merge(0)}):
        torch.testing.assert_close(ReducedVit(model, steps)(given), expected)


def test_evit_keeps_the_most_attended_and_sums_the_rest_by_attention() -> None:
    x = torch.tensor([[[9.0], [1.0], [2.0], [4.0]]])  # the class token first
    weights = torch.zeros(1, 2, 4, 4)
    weights[0, :, 0] = torch.tensor([[0.0, 0.4, 0.1, 0.5], [0.2, 0.2, 0.3, 0.3]])  # mean .3, .2, .4
    kept = keep_attended(x, weights, 1)
    torch.testing.assert_close(kept, torch.tensor([[[9.0], [4.0], [0.3 * 1 + 0.2 * 2]]]))


def test_tome_merges_the_most_similar_pairs_to_their_mean_by_size() -> None:
    # Sets: class, 1, 2 against 3, 4. Token 1 is like 4 (cosine 1), token 2 less like 3 (.8).
    x = torch.tensor([[[9.0], [5.0], [1.0], [7.0], [2.0]]])
    metric = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]])
    size = torch.tensor([[[1.0], [1.0], [3.0], [1.0], [1.0]]])
    merged, sizes = merge_similar(x, size, metric, 1)
    # The third token (size 3, value 1) meets the fourth (size 1, value 7): (3 + 7) / 4.
    torch.testing.assert_close(merged, torch.tensor([[[9.0], [2.0], [5.0], [2.5]]]))
    torch.testing.assert_close(sizes, torch.tensor([[[1.0], [1.0], [1.0], [4.0]]]))


def test_the_class_token_is_never_merged_and_no_token_is_lost() -> None:
    x = torch.randn(1, 9, 4)
    metric = torch.ones(1, 9, 2)  # all alike: nothing but the rule keeps the class token apart
    size = None
    for pairs in (3, 99, 99):
        x, size = merge_similar(x, size, metric[:, : x.shape[1]], pairs)
        assert size is not None
        assert size.sum().item() == pytest.approx(9)
        assert size[0, 0, 0].item() == 1
    assert x.shape[1] == 3  # 9, 6, 4, 3: half of all but the class token at most


def test_attention_to_a_token_of_two_is_that_to_two_tokens() -> None:
    attention = Attention(named_model("vit-nano"))
    one, two = torch.randn(1, 1, 24), torch.randn(1, 1, 24)
    apart, _, _ = attend(attention, torch.cat([one, two, two], dim=1), None)
    together, _, _ = attend(attention, torch.cat([one, two], dim=1), torch.tensor([[[1.0], [2.0]]]))
    torch.testing.assert_close(together[:, :1], apart[:, :1])


def test_the_schedules_end_at_the_tokens_that_they_name() -> None:
    # tiny: 98 and 49 kept with one fused; 196 less 5 x 29; 196 to 98 to 49.
    model = vit("tiny")
    schedules, impossible = reductions(model.config)
    found = {schedule.name: ReducedVit(model, schedule.steps).tokens() for schedule in schedules}
    assert found == {"evit-50": 99, "evit-25": 50, "tome-even": 51, "tome-half-twice": 49}
    assert not impossible
    assert set(reductions(named_model("vit-nano"))[1]) == {"tome-even", "tome-half-twice"}


@pytest.mark.slow
@pytest.mark.parametrize("steps", [{0: Keep(13)}, {0: Merge(24)}])
def test_the_graph_answers_as_the_model(steps: dict[int, Keep | Merge], tmp_path: Path) -> None:
    model = ReducedVit(vit("nano"), steps).eval()
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(trace(model, model.vit.config).SerializeToString())
    given = flow(model.vit)
    session = open_session(graph, 1)
    (found,) = session.run(None, {"flow": given.numpy()})
    assert torch.from_numpy(found).allclose(model(given), atol=1e-5)
