"""The mask decoder of SAM 2 and SAM 3 for many points of one image, without doing for each point what all share.

The published decoder (Meta's `MaskDecoder` under `SAM2AutomaticMaskGenerator`; transformers' is a port of it) repeats
the image for every point and projects it to keys, queries and values again for each of 4,096. Here the same sums are
done in another order, equal but for rounding:

- In the first layer the image is the same for all points: it is projected once.
- In the others 8 tokens meet 4,096 cells, so the projection is folded into the tokens: `q (W x)` is `(q W) x`.
- Masks are drawn only for points that have one the model predicts to be good enough to stay.

Sizes in comments: B points, T tokens of a point, H heads of width e, N cells of the coarsest features, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Tokens are: object score, predicted IoU, the single mask, three masks, the point, padding. Looked at in the end are:
USED = [1, 3, 4, 5]


@dataclass(frozen=True)
class PoolRules:
    """Which masks stay in the pool: the defaults of `SAM2AutomaticMaskGenerator` (sam2/automatic_mask_generator.py).

    Attributes:
        score: the predicted IoU must be above it.
        stability: IoU of the mask cut `offset` above zero with that cut `offset` below: at least this.
        offset: of the logits.
        overlap: of two masks whose boxes have an IoU above it, the one with the lower score goes.
    """

    score: float = 0.8
    stability: float = 0.95
    offset: float = 1.0
    overlap: float = 0.7


class GridDecoder:
    """Decodes points on one image; not for training.

    Args:
        model: `Sam2Model` or `Sam3TrackerModel` on the device.
        embeddings: what its `get_image_embeddings` gives for one image, finest first: (1, C/8, 4h, 4w),
            (1, C/4, 2h, 2w), (1, C, h, w).
        dtype: of what has N cells for each point; the tokens keep the model's own.
    """

    def __init__(self, model: Any, embeddings: list[Tensor], dtype: torch.dtype) -> None:
        fine, middle, coarse = (features[0].to(model.dtype) for features in embeddings)
        places = _cells(model.get_image_wide_positional_embeddings()[0])
        cells = _cells(coarse) + model.prompt_encoder.no_mask_embed.weight
        self._prompts, self._decoder = model.prompt_encoder, model.mask_decoder
        self._dtype, self._image = dtype, cells.to(dtype)
        self._height, self._width = coarse.shape[1:]
        layers = self._decoder.transformer.layers
        self._layers = [_Layer(layer, None if i else cells, places, dtype) for i, layer in enumerate(layers)]
        self._last = _Look(self._decoder.transformer.final_attn_token_to_image, None, places, dtype)
        self._wider = _Upscaling(self._decoder.upscale_conv1, _cells(middle, 2), dtype)
        self._widest = _Upscaling(self._decoder.upscale_conv2, _cells(fine, 2, 2), dtype)

    def candidates(self, points: Tensor, rules: PoolRules) -> Tensor:
        """The three masks of each point, measured.

        Args:
            points: (B, 2) x, y in pixels of the model's input.

        Returns:
            (B, 3, 6): the predicted IoU, the half-open box x0, y0, x1, y1 and the area, both in pixels of `logits`.
            All 0 for a mask that is empty, or whose predicted IoU or stability is too low.
        """
        tokens, cells = self._attended(points)
        scores = self._decoder.iou_prediction_head(tokens[:, 0])[:, 1:]  # the first is of the decoder's single mask
        found: Tensor = scores.new_zeros(*scores.shape, 6)
        good = scores > rules.score
        alive = good.any(1)
        if bool(alive.any()):
            masks = self._drawn(tokens[alive], cells if bool(alive.all()) else cells[alive])
            found[good] = _measured(masks[good[alive]], scores[good], rules)
        return found

    def logits(self, points: Tensor) -> Tensor:
        """The three masks of each point: (B, 3, 4h, 4w), inside where above 0."""
        tokens, cells = self._attended(points)
        masks = self._drawn(tokens, cells).to(tokens.dtype)
        return masks.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*masks.shape[:2], 4 * self._height, 4 * self._width)

    def _attended(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens USED (B, 4, C) and cells (B, N, C) behind the two-way transformer."""
        labels = torch.ones(1, len(points), 1, dtype=torch.int, device=points.device)
        prompt, _ = self._prompts(points[None, :, None], labels, None, None)  # (1, B, 2, C)
        decoder = self._decoder
        own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        first = torch.cat([own.expand(len(points), -1, -1), prompt[0]], dim=1)
        tokens, cells = first, self._image.expand(len(points), -1, -1)
        for layer in self._layers:
            tokens, cells = layer(tokens, first, cells)
        last = tokens[:, USED] + self._last((tokens + first)[:, USED], cells)
        normed: Tensor = decoder.transformer.layer_norm_final_attn(last)
        return normed, cells

    def _drawn(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """The three masks as logits (B, 3, h, w, 2, 2, 2, 2): then y and x of the first doubling, and of the second."""
        decoder = self._decoder
        heads = enumerate(decoder.output_hypernetworks_mlps)
        brushes = torch.stack([head(tokens[:, i]) for i, head in heads if i], dim=1).to(self._dtype)  # (B, 3, C/8)
        wider = decoder.activation(_normed(self._wider(cells), decoder.upscale_layer_norm))  # (B, 4N, C/4)
        widest = decoder.activation(self._widest(wider))  # (B, 16N, C/8)
        masks: Tensor = brushes @ widest.transpose(1, 2)
        return masks.view(*masks.shape[:2], self._height, self._width, 2, 2, 2, 2)


class _Layer:
    """A layer of the two-way transformer. `shared`: (N, C), the cells where they are the same for all points."""

    def __init__(self, layer: Any, shared: Tensor | None, places: Tensor, dtype: torch.dtype) -> None:
        self._layer = layer
        self._look = _Look(layer.cross_attn_token_to_image, shared, places, dtype)
        self._tell = _Tell(layer.cross_attn_image_to_token, shared, places, dtype)

    def __call__(self, tokens: Tensor, first: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        layer = self._layer
        tokens = layer.layer_norm1(self._among_themselves(tokens, first))
        tokens = layer.layer_norm2(tokens + self._look(tokens + first, cells))
        tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
        return tokens, _normed(self._tell(tokens + first, tokens, cells), layer.layer_norm4)

    def _among_themselves(self, tokens: Tensor, first: Tensor) -> Tensor:
        attention = self._layer.self_attn
        if self._layer.skip_first_layer_pe:
            alone: Tensor = attention(query=tokens[None], key=tokens[None], value=tokens[None])[0][0]
            return alone
        placed = (tokens + first)[None]
        added: Tensor = attention(query=placed, key=placed, value=tokens[None])[0][0]
        return tokens + added


class _Look:
    """Attention of tokens to cells."""

    def __init__(self, attention: Any, shared: Tensor | None, places: Tensor, dtype: torch.dtype) -> None:
        self._attention, self._dtype = attention, dtype
        self._keys = attention.k_proj(places if shared is None else shared + places).to(dtype)
        self._values = None if shared is None else attention.v_proj(shared).to(dtype)

    def __call__(self, placed: Tensor, cells: Tensor) -> Tensor:
        """(B, T, C) tokens with their places, (B, N, C) cells -> (B, T, C)."""
        queries = self._attention.q_proj(placed)
        seen = self._of_each(queries, cells) if self._values is None else self._of_all(queries, self._values)
        answer: Tensor = self._attention.o_proj(seen)
        return answer

    def _of_all(self, queries: Tensor, values: Tensor) -> Tensor:
        heads = self._attention.num_attention_heads
        rows = queries.reshape(1, -1, queries.shape[-1]).to(self._dtype)
        query, key, value = (_by_head(x, heads) for x in (rows, self._keys[None], values[None]))
        seen = functional.scaled_dot_product_attention(query, key, value)
        return seen.transpose(1, 2).reshape(queries.shape).to(queries.dtype)

    def _of_each(self, queries: Tensor, cells: Tensor) -> Tensor:
        attention = self._attention
        by_head = _by_head(queries, attention.num_attention_heads) * attention.scaling
        weights = _scores(by_head, self._keys, attention.k_proj.weight, cells).softmax(-1)
        seen = (weights @ cells).to(queries.dtype).view(*by_head.shape[:3], -1)  # (B, H, T, C)
        value = attention.v_proj.weight.view(by_head.shape[1], -1, seen.shape[3])
        bias: Tensor = attention.v_proj.bias
        return torch.einsum("bhtc,hec->bthe", seen, value).flatten(2) + bias


class _Tell:
    """Attention of cells to tokens, added to the cells."""

    def __init__(self, attention: Any, shared: Tensor | None, places: Tensor, dtype: torch.dtype) -> None:
        self._attention, self._shared = attention, shared is not None
        self._queries = attention.q_proj(places if shared is None else shared + places).to(dtype)

    def __call__(self, placed: Tensor, tokens: Tensor, cells: Tensor) -> Tensor:
        """(B, T, C) tokens with and without their places, (B, N, C) cells -> (B, N, C)."""
        attention = self._attention
        heads = attention.num_attention_heads
        keys = _by_head(attention.k_proj(placed), heads) * attention.scaling
        scores = _scores(keys, self._queries, attention.q_proj.weight, None if self._shared else cells)
        weights = scores.view(*keys.shape[:3], -1).softmax(2).flatten(1, 2)  # (B, H T, N)
        output = attention.o_proj.weight.view(-1, heads, keys.shape[3])
        values = torch.einsum("bhte,che->bhtc", _by_head(attention.v_proj(tokens), heads), output)
        values = values + attention.o_proj.bias / heads  # each head's weights sum to 1
        added = torch.baddbmm if self._shared else Tensor.baddbmm_  # nobody else holds the cells of later layers
        return added(cells, weights.transpose(1, 2), values.flatten(1, 2).to(cells.dtype))


class _Upscaling:
    """A transposed convolution of stride 2 as a product: each cell becomes four, which stay beside each other."""

    def __init__(self, convolution: Any, added: Tensor, dtype: torch.dtype) -> None:
        weight = convolution.weight  # (in, out, 2, 2)
        self._weight = weight.permute(0, 2, 3, 1).flatten(1).to(dtype)
        self._added = (added + convolution.bias).view(-1, self._weight.shape[1]).to(dtype)

    def __call__(self, cells: Tensor) -> Tensor:
        """(B, n, in) -> (B, 4n, out)."""
        points = len(cells)
        wide = torch.baddbmm(self._added.expand(points, -1, -1), cells, self._weight.expand(points, -1, -1))
        return wide.view(points, 4 * cells.shape[1], -1)


def _cells(features: Tensor, *doublings: int) -> Tensor:
    """(C, height, width) -> (height * width, C), where the four cells of each doubling stay beside each other."""
    channels, height, width = features.shape
    times = len(doublings)
    rows, columns = [height >> times, *doublings], [width >> times, *doublings]
    cut = features.view(channels, *rows, *columns)
    order = [axis for i in range(times + 1) for axis in (1 + i, 2 + times + i)]
    return cut.permute(*order, 0).reshape(-1, channels)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, n, H e) -> (B, H, n, e)."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _scores(tokens: Tensor, shared: Tensor, weight: Tensor, cells: Tensor | None) -> Tensor:
    """Products of tokens with projected cells, (B, H T, N), in the dtype of `shared`.

    Args:
        tokens: (B, H, T, e), scaled.
        shared: (N, H e), what is the same for all points: projected places, and cells where those are the same.
        weight: (H e, C), projects the cells, if any.
        cells: (B, N, C).
    """
    points, heads, count, width = tokens.shape
    by_head = tokens.transpose(0, 1).reshape(heads, -1, width).to(shared.dtype)
    known = by_head @ shared.view(-1, heads, width).permute(1, 2, 0)  # (H, B T, N)
    known = known.view(heads, points, count, -1).transpose(0, 1).reshape(points, heads * count, -1)
    if cells is None:
        return known
    folded = torch.einsum("bhte,hec->bhtc", tokens, weight.view(heads, width, -1)).flatten(1, 2)
    return known.baddbmm_(folded.to(cells.dtype), cells.transpose(1, 2))


def _normed(x: Tensor, norm: Any) -> Tensor:
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def _measured(masks: Tensor, scores: Tensor, rules: PoolRules) -> Tensor:
    """(n, h, w, 2, 2, 2, 2) logits and (n,) scores -> (n, 6): score, box and area; 0 where unstable or empty."""
    inner, outer = ((masks > cut).flatten(1).sum(1) for cut in (rules.offset, -rules.offset))
    inside = masks > 0
    columns, rows = inside.any((1, 3, 5)).flatten(1), inside.any((2, 4, 6)).flatten(1)
    starts = [line.int().argmax(1) for line in (columns, rows)]
    ends = [line.shape[1] - line.flip(1).int().argmax(1) for line in (columns, rows)]
    area = inside.flatten(1).sum(1)
    measures = torch.stack([*starts, *ends, area], dim=1).to(scores.dtype)
    stays = (inner >= rules.stability * outer) & (area > 0)
    return torch.cat([scores[:, None], measures], dim=1) * stays[:, None]
