"""The network: photos and prompts to mask logits. SAM 2 encodes the photo, the adapter the prompt, SAM 2 decodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convseg.adapter import LanguageAdapter, PromptEmbeddings
from dataengine.segmenters.sam2 import Sam2Segmenter

# Of SAM 2's mask decoder: no gradient of a mask's logits reaches the heads that rate a mask and those that draw three
# masks. The two convolutions belong to the image: they are applied to it once, before any prompt.
UNUSED = ("iou_prediction_head.", "pred_obj_score_head.", *(f"output_hypernetworks_mlps.{i}." for i in (1, 2, 3)))
OF_THE_IMAGE = ("conv_s0.", "conv_s1.")
ENCODER = ("vision_encoder.", "no_memory_embedding", *(f"mask_decoder.{name}" for name in OF_THE_IMAGE))
MASK_TOKENS = slice(2, 6)  # after the tokens for "is there an object" and "how good is the mask"


@dataclass(frozen=True)
class ImageMaps:
    """What the image encoder made of n photos.

    Attributes:
        fine: (n, C/8, 4h, 4w).
        middle: (n, C/4, 2h, 2w).
        coarse: (n, C, h, w).
    """

    fine: Tensor
    middle: Tensor
    coarse: Tensor

    def __getitem__(self, which: Tensor) -> ImageMaps:
        return ImageMaps(self.fine[which], self.middle[which], self.coarse[which])

    def joined(self, other: ImageMaps) -> ImageMaps:
        """Those of these photos, then of others."""
        pairs = ((self.fine, other.fine), (self.middle, other.middle), (self.coarse, other.coarse))
        return ImageMaps(*(torch.cat([mine, theirs.to(mine.dtype)]) for mine, theirs in pairs))


class ConvSeg(nn.Module):
    """SAM 2 and a language adapter.

    Args:
        sam: `Sam2Model`.
        adapter: for its width.
        train_encoder: train the image encoder too.

    Attributes:
        side: pixels of the square image that SAM 2 sees.
        cells: side of the decoder's logits, 4h.
    """

    def __init__(self, sam: Any, adapter: LanguageAdapter, *, train_encoder: bool = False) -> None:
        super().__init__()
        self.sam, self.adapter = sam, adapter
        self.train_encoder = train_encoder
        self.side = int(sam.prompt_encoder.input_image_size)
        self.cells = int(sam.backbone_feature_sizes[0][0])
        sam.requires_grad_(False)
        for name, parameter in sam.mask_decoder.named_parameters():
            frozen = UNUSED if train_encoder else (*UNUSED, *OF_THE_IMAGE)
            parameter.requires_grad_(not name.startswith(frozen))
        if train_encoder:
            sam.vision_encoder.requires_grad_(True)
            sam.no_memory_embedding.requires_grad_(True)
        self._mean: Tensor
        self._deviation: Tensor
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in Sam2Segmenter.normalization)
        self.register_buffer("_mean", mean, persistent=False)
        self.register_buffer("_deviation", deviation, persistent=False)

    def train(self, mode: bool = True) -> ConvSeg:
        """As `nn.Module`; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.sam.vision_encoder.train(mode and self.train_encoder)
        return self

    def encoder_digest(self) -> str:
        """12 hex digits of what `encode` computes with: the encoder's weights, whatever file they came from."""
        whole = hashlib.sha256()
        for name, value in self.sam.state_dict().items():
            if name.startswith(ENCODER):
                whole.update(name.encode())
                whole.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return whole.hexdigest()[:12]

    def encode(self, pixels: Tensor) -> ImageMaps:
        """Encode photos.

        Args:
            pixels: (n, 3, side, side) uint8 RGB, on the model's device.
        """
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            normed = (pixels.float() / 255 - self._mean) / self._deviation
            found = self.sam.get_image_features(normed, return_dict=True).fpn_hidden_states  # (h w, n, C) each
            used = [*found[:2], (found[2] + self.sam.no_memory_embedding).to(found[2].dtype)]
            sizes = self.sam.backbone_feature_sizes
            shaped = [m.permute(1, 2, 0).unflatten(2, tuple(size)) for m, size in zip(used, sizes, strict=True)]
        return ImageMaps(*shaped)

    def forward(self, images: ImageMaps | Tensor, which: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of one mask a prompt, (B, 4h, 4w) float32: inside where above 0.

        Args:
            images: what `encode` made of n photos, or their pixels.
            which: (B,) int64, the photo of each prompt.
            inputs: what `PromptReader` made of the prompts.
        """
        maps = images if isinstance(images, ImageMaps) else self.encode(images)
        return self.decode(maps[which], self.adapter(inputs))[:, 0]

    def decode(self, maps: ImageMaps, prompts: PromptEmbeddings, *, several: bool = False) -> Tensor:
        """The logits of one mask, or of three, for each of B prompts and its photo: (B, 1 or 3, 4h, 4w) float32.

        This is SAM 2's mask decoder, where tokens that only fill up a batch are seen by nothing.

        Args:
            maps: of B photos.
            prompts: of B prompts.
            several: the three masks the decoder has beside its single one, the one it rates best first.
        """
        decoder = self.sam.mask_decoder
        count = len(maps.coarse)
        own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        first = torch.cat([own.expand(count, -1, -1), prompts.sparse.to(own.dtype)], dim=1)  # (B, T, C)
        hidden = _hidden(prompts.present, len(own), first.dtype)  # (B, 1, 1, T)
        cells = _rows(maps.coarse) + prompts.dense[:, None]  # (B, h w, C)
        with torch.autocast(first.device.type, enabled=False):  # angles of many turns: not in bfloat16
            places = _rows(self.sam.get_image_wide_positional_embeddings())
        tokens, cells = _two_way(decoder.transformer, first, cells, places, hidden)
        return self._draw(tokens, cells, maps, several).float()

    def _draw(self, tokens: Tensor, cells: Tensor, maps: ImageMaps, several: bool) -> Tensor:
        decoder = self.sam.mask_decoder
        image = cells.transpose(1, 2).reshape(maps.coarse.shape)
        wide = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image) + maps.middle))
        canvas = decoder.activation(decoder.upscale_conv2(wide) + maps.fine)  # (B, C/8, 4h, 4w)
        chosen = tokens[:, MASK_TOKENS]
        kinds = (1, 2, 3) if several else (0,)
        brushes = torch.stack([decoder.output_hypernetworks_mlps[i](chosen[:, i]) for i in kinds], dim=1)
        masks = torch.einsum("bmc,bchw->bmhw", brushes, canvas.to(brushes.dtype))
        if several:
            rated = decoder.iou_prediction_head(tokens[:, 1])[:, 1:]  # (B, 3)
            masks = masks[torch.arange(len(masks), device=masks.device)[:, None], rated.argsort(1, descending=True)]
        return masks


def _hidden(present: Tensor, own: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores, (B, 1, 1, T): minus infinity for tokens that are not there."""
    hidden = torch.zeros(len(present), 1, 1, own + present.shape[1], dtype=dtype, device=present.device)
    hidden[:, 0, 0, own:].masked_fill_(~present, float("-inf"))
    return hidden


def _rows(image: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return image.flatten(2).transpose(1, 2)


def _two_way(transformer: Any, first: Tensor, cells: Tensor, places: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's transformer (`Sam2TwoWayTransformer`): tokens (B, T, C) and cells (B, h w, C), attended."""

    def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        found: Tensor = attention(query[:, None], key[:, None], value[:, None], attention_similarity=mask)[0]
        return found[:, 0]

    tokens = first
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = attend(layer.self_attn, tokens, tokens, tokens, hidden)
        else:
            tokens = tokens + attend(layer.self_attn, tokens + first, tokens + first, tokens, hidden)
        tokens = layer.layer_norm1(tokens)
        seen = attend(layer.cross_attn_token_to_image, tokens + first, cells + places, cells)
        tokens = layer.layer_norm2(tokens + seen)
        tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
        told = attend(layer.cross_attn_image_to_token, cells + places, tokens + first, tokens, hidden)
        cells = layer.layer_norm4(cells + told)
    seen = attend(transformer.final_attn_token_to_image, tokens + first, cells + places, cells)
    return transformer.layer_norm_final_attn(tokens + seen), cells
