"""Attention: heads are made by queries, keys and values, and read by the output's kernel.

A group of kind ``heads`` never mixes with channels: what a head computes from its own entries
(`key_dim`, `value_dim`) keeps its size, so a head leaves whole or stays whole.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from edgeprune.structure.call import Call, Tensor
from edgeprune.structure.channels import Axes, Ids
from edgeprune.structure.registry import register_pruning_rule as rule
from edgeprune.structure.rules.dense import refused
from edgeprune.structure.rules.einsum import misplaced


@rule("MultiHeadAttention")
def multi_head(call: Call) -> list[Axes]:
    """Read what is attended with, make heads and output channels.

    The output's width is that of the query unless the config states one, so it is stated: the
    two shrink each by its own channels.
    """
    layer = call.layer
    if reason := _refusal(layer):
        return list(call.freeze_all(reason))
    given = call.named()
    query, value = given["query"], given["value"]
    key = value if given.get("key") is None else given["key"]
    heads = call.new(layer.num_heads, kind="heads")
    call.counts("num_heads", heads)
    for dense, source in _projections(layer, query, key, value):
        call.reads(dense.kernel, 0, input=source)
        call.makes(dense.kernel, 1, heads)
        call.makes(dense.bias, 0, heads, "bias")
        _freeze_misplaced(call, dense.bias, heads)
    attended = len(layer.attention_axes)
    _attend(call, (query, key, value), heads, attended)
    output = layer.output_dense
    call.carries(output.kernel, 0, heads, "in")
    made = [call.new(size) for size in output.kernel.shape[2:]]
    stated = layer.get_config()["output_shape"] is not None
    for index, ids in enumerate(made):
        call.makes(output.kernel, 2 + index, ids)
        call.makes(output.bias, index, ids, "bias")
        call.counts("output_shape", ids, *([index] if stated else []))
    free = (None,) * (len(call.input_shapes[query]) - 1)
    return _with_scores(call, (*free, *made), heads, attended)


@rule("GroupedQueryAttention")
def grouped_query(call: Call) -> list[Axes]:
    """Make heads in bundles: a head of keys and values leaves with all the queries it answers.

    Fewer queries for some heads than for others is nothing that the layer can hold. With a single
    head of keys and values, the heads of the queries leave one by one. The output is as wide as
    the query, and the value too.
    """
    layer = call.layer
    if reason := _refusal(layer):
        return list(call.freeze_all(reason))
    given = call.named()
    query, value = given["query"], given["value"]
    key = value if given.get("key") is None else given["key"]
    heads = call.new(layer.num_query_heads, kind="heads")
    call.counts("num_query_heads", heads)
    answered: Ids | None = None
    if layer.num_key_value_heads > 1:
        bundles = heads.reshape(layer.num_key_value_heads, -1)
        answered = bundles[:, 0]
        for column in bundles.T[1:]:
            call.tie(column, answered)
        call.counts("num_key_value_heads", answered)
    for dense, source in _projections(layer, query, key, value):
        call.reads(dense.kernel, 0, input=source)
        made = answered if dense in (layer._key_dense, layer._value_dense) else heads
        call.makes(dense.kernel, 1, made)
        call.makes(dense.bias, 0, made, "bias")
        _freeze_misplaced(call, dense.bias, heads)
    _attend(call, (query, key, value), heads, 1)
    width = call.inputs[query][-1]
    call.tie(width, call.inputs[value][-1])
    output = layer._output_dense
    call.carries(output.kernel, 0, heads, "in")
    call.makes(output.kernel, 2, width)
    call.makes(output.bias, 0, width, "bias")
    return _with_scores(call, (None, None, width), heads)


def _projections(layer: Any, query: int, key: int, value: int) -> Iterable[tuple[Any, int]]:
    """Yield each layer that makes heads, and the input that it reads."""
    yield layer._query_dense, query
    yield layer._key_dense, key
    yield layer._value_dense, value
    gate = getattr(layer, "_gate_dense", None)
    if gate is not None:
        yield gate, query


def _refusal(layer: Any) -> str | None:
    return next(filter(None, map(refused, layer._flatten_layers())), None)


def _freeze_misplaced(call: Call, bias: Any, heads: Ids) -> None:
    if bias is not None and misplaced(bias):
        call.freeze(heads, "has heads of one entry, whose bias Keras puts on another axis")


def _attend(call: Call, sources: Sequence[int], heads: Ids, attended: int) -> None:
    """Freeze what is attended over, masks, and the heads of a mask that differs between heads.

    Args:
      call: of the layer.
      sources: which inputs are query, key and value.
      heads: of the scores.
      attended: how many axes are attended over.
    """
    for index, axes in enumerate(call.inputs):
        for ids in axes[:-1] if index in sources else axes:
            call.freeze(ids, "attends over this axis, or masks with it")
    mask = call.named().get("attention_mask")
    if mask is None:
        return
    shape = call.input_shapes[mask] if isinstance(mask, Tensor) else np.shape(mask)
    # Scores are (batch, heads, queries, keys); a mask of lower rank is spread over the heads.
    rank = len(call.input_shapes[sources[0]]) + attended
    if len(shape) == rank and shape[-2 * attended - 1] != 1:
        call.freeze(heads, "is given an attention mask for each head")


def _with_scores(call: Call, output: Axes, heads: Ids, attended: int = 1) -> list[Axes]:
    if len(call.output_shapes) == 1:
        return [output]
    if attended > 1 or len(output) > 3:
        call.freeze(heads, "returns scores of more than four axes")
    return [output, (None, heads, None, None)]


@rule("Attention", "AdditiveAttention")
def attention(call: Call) -> list[Axes]:
    """Compare queries and keys channel by channel, and hand the values' channels on."""
    query, value, *rest = call.named()["inputs"]
    key = rest[0] if rest else value
    call.tie(call.inputs[query][-1], call.inputs[key][-1])
    for index in {query, key, value}:
        call.sees(index, -1)
    scale = call.layer.scale
    if scale is not None and len(scale.shape):
        call.carries(scale, 0, call.inputs[query][-1], "scale")
    for index, axes in enumerate(call.inputs):
        for ids in axes[:-1] if index in (query, key, value) else axes:
            call.freeze(ids, "attends over this axis, or masks with it")
    kept = [(None,) * len(shape) for shape in call.output_shapes]
    return [(*kept[0][:-1], call.inputs[value][-1]), *kept[1:]]
