"""Multiply-adds in closed form: of a model as it is written, and of the static graph that is exported.

Letters: N patches, K kept ones, T = 1 + tokens in a block, d width, m width of the MLP, k classes, F = C p^2
values of a patch. By the convention of `flops`: a product of (a, b) with (b, c) takes a b c.

    block of T tokens     4 T d^2 (queries, keys, values, output) + 2 T^2 d (scores, mix) + 2 T d m (MLP)
    embedding             N F d (ViT), 5 N F d (DNSPT as written), 4 K F d (DNSPT as one window product)
    head                  d k, and K k d for a local read-out, and C N k for the read-out of the means

Written, PTSR embeds and attends to all patches first and drops tokens afterwards; exported, nothing is
calculated for a row that is dropped later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError

CELLS = 16
"""Cells of a patch's window in the folded DNSPT (see `rewrite`): 2 x 2 blocks of 2 x 2."""

EMBEDDING = "patch embedding"
BLOCKS = "blocks"
SELECTING = "block that selects"
LAST = "last block"
SCORE = "selection score"
HEAD = "head"

REASONS = {
    EMBEDDING: "DNSPT is one product over each kept patch's window, not over five views of all patches",
    SELECTING: "only rows that are kept are queried, projected and put through the MLP",
    SCORE: "the class token's row is scored by itself",
    LAST: "only the class token is read from the last block",
}
"""Why the exported graph takes another number of multiply-adds than the model as it is written, by part."""


def eager_macs(config: ModelConfig, tokens: int) -> dict[str, int]:
    """Multiply-adds of the model as it is written, by part, at a budget of `tokens`.

    Raises:
        InputError: more tokens than there are, or fewer than 1; of a ViT, any but all.
    """
    _check(config, tokens)
    if config.kind == "vit":
        return _vit(config)
    parts = Counter({EMBEDDING: 5 * config.patches * _features(config) * config.dim})
    drops = tokens < config.patches
    full, kept = 1 + config.patches, 1 + tokens
    for index in range(config.depth):
        seen_all = drops and not config.selects_before_embedding and index <= config.select_block
        parts[_part(config, tokens, index)] += _block(config, full if seen_all else kept)
    if drops and config.score == "rollout":
        parts[SCORE] += config.select_block * full**2
    return dict(parts | Counter({HEAD: _head(config, tokens)}))


def exported_macs(config: ModelConfig, tokens: int) -> dict[str, int]:
    """Multiply-adds of the static graph (see `static`), by part, at a budget of `tokens`.

    Raises:
        InputError: as `eager_macs`.
    """
    _check(config, tokens)
    if config.kind == "vit":
        return _vit(config)
    before = config.selects_before_embedding
    embedded = tokens if before else config.patches
    a_patch = 4 * _features(config) * config.dim
    if config.token_norm == "layer":
        # Statistics from the cells: their means through (16, d), and two weighted sums over 16.
        a_patch += CELLS * config.dim + 2 * CELLS
    parts = Counter({EMBEDDING: embedded * a_patch})
    rows = 1 + embedded
    for index in range(config.depth):
        part = _part(config, tokens, index)
        if part == SELECTING:
            parts[part] += _block(config, rows, queried=1 + tokens)
            # The class token's query, against the keys of the patches.
            parts[SCORE] += config.dim**2 + config.patches * config.dim
            if config.score == "rollout":
                parts[SCORE] += index * rows**2
            rows = 1 + tokens
        elif part == LAST:
            parts[part] += _block(config, rows - 1, queried=1)
        else:
            parts[part] += _block(config, rows)
    return dict(parts | Counter({HEAD: _head(config, tokens)}))


def explain(config: ModelConfig, tokens: int) -> str:
    """One sentence: how many multiply-adds the exported graph saves, and by which rewrites."""
    written, exported = eager_macs(config, tokens), exported_macs(config, tokens)
    saved = sum(written.values()) - sum(exported.values())
    if written == exported:
        return "the exported graph takes as many multiply-adds as the model as it is written"
    gaps = _gaps(written, exported)
    told = "; ".join(f"{gap:+,} {part} ({REASONS.get(part, 'by rows')})" for part, gap in gaps.items())
    more_or_less = "fewer" if saved >= 0 else "more"
    return (
        f"the exported graph takes {abs(saved):,} multiply-adds {more_or_less} than the eager model: {told}"
    )


def _gaps(written: Mapping[str, int], exported: Mapping[str, int]) -> dict[str, int]:
    """By part, exported minus written; parts that are alike are left out."""
    names = dict.fromkeys([*written, *exported])
    gaps = {name: exported.get(name, 0) - written.get(name, 0) for name in names}
    return {name: gap for name, gap in gaps.items() if gap}


def _check(config: ModelConfig, tokens: int) -> None:
    config.check_tokens(tokens)
    if config.kind == "vit" and tokens != config.patches:
        raise InputError(f"{config.name} keeps all of its {config.patches} tokens, got a budget of {tokens}")


def _features(config: ModelConfig) -> int:
    return config.channels * config.patch_size**2


def _part(config: ModelConfig, tokens: int, index: int) -> str:
    """Under which part a block is counted: some are calculated for fewer rows than they are written for."""
    drops = tokens < config.patches
    if drops and not config.selects_before_embedding and index == config.select_block:
        return SELECTING
    return LAST if index == config.depth - 1 and not config.local_readout else BLOCKS


def _block(config: ModelConfig, tokens: int, queried: int | None = None) -> int:
    """A block that has keys and values of `tokens` rows and calculates everything else for `queried`."""
    rows = tokens if queried is None else queried
    keys_values = 2 * tokens * config.dim**2
    attention = 2 * rows * config.dim**2 + 2 * rows * tokens * config.dim
    return keys_values + attention + 2 * rows * config.dim * config.mlp_dim


def _head(config: ModelConfig, tokens: int) -> int:
    local = tokens * config.classes * config.dim if config.local_readout else 0
    means = config.channels * config.patches * config.classes if config.mean_readout else 0
    return config.dim * config.classes + local + means


def _vit(config: ModelConfig) -> dict[str, int]:
    return {
        EMBEDDING: config.patches * _features(config) * config.dim,
        BLOCKS: config.depth * _block(config, 1 + config.patches),
        HEAD: config.dim * config.classes,
    }
