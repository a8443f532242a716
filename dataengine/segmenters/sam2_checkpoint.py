"""SAM 2's weights into transformers' Sam2Model, from `.pt` files of Meta's, saved folders or the hub; and back."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from dataengine.errors import UsageError
from dataengine.hub import identity_of, load_from_hub, model_folder, model_type
from dataengine.settings import SAM2_CONFIGS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Sam2Config, Sam2Model

SIDE = 1024  # pixels of the square image that every published SAM 2 sees


class Flags(NamedTuple):
    """The flags that name a model, for messages."""

    config: str = "--config"
    checkpoint: str = "--checkpoint"


FLAGS = Flags()


# Parts of Meta's checkpoints that only video needs: SAM2ImagePredictor never calls them, Sam2Model has none of them.
VIDEO_ONLY = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_embed_spatial",
    "no_obj_ptr",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
)


@dataclass(frozen=True)
class _Size:
    """What tells one size of the image encoder (Hiera) from another; channels and heads double with each stage."""

    channels: int
    heads: int
    blocks: tuple[int, int, int, int]  # of each stage
    global_blocks: tuple[int, int, int]  # attend to the whole image, not to a window
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)  # side of each stage's windows, in cells
    background: int = 7  # side of the positional embedding that is stretched over the image

    def by_stage(self, first: int) -> list[int]:
        return [first * 2**stage for stage in range(len(self.blocks))]


# From `image_encoder.trunk` of Meta's sam2/configs/sam2*/*.yaml; what b+ leaves out there is the default of its Hiera
# class. SAM 2 and SAM 2.1 differ in parts for video only, so one table serves both.
_SIZES = {
    "t": _Size(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "s": _Size(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "b+": _Size(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "l": _Size(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}

# transformers' names -> Meta's, in this order, each wherever it matches.
_RENAMES = tuple(
    (re.compile(pattern), meta)
    for pattern, meta in (
        # one matrix encodes all positions: of the image's cells, and of points and corners of boxes
        (
            r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (r"^no_memory_embedding$", "no_mem_embed"),
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
        # both list the neck's convolutions from the coarsest map to the finest; Meta's are each in a Sequential
        (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
        (r"^prompt_encoder\.", "sam_prompt_encoder."),
        (r"^mask_decoder\.", "sam_mask_decoder."),
        # Sequentials without names of their own: what is missing between the numbers are activations
        (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
        (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
        (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
        (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
        (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
        (r"\.upscale_conv1\.", ".output_upscaling.0."),
        (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
        (r"\.upscale_conv2\.", ".output_upscaling.3."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
        (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
        (r"\.o_proj\.", ".out_proj."),
        # MLPs, numbered there from the input: two layers in blocks, three in the hypernetworks and the two heads
        (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
        (r"\.layers\.0\.(weight|bias)$", r".layers.1.\1"),
        (r"\.proj_in\.", ".layers.0."),
        (r"\.proj_out\.", ".layers.2."),
    )
)


def load_sam2(config: str, checkpoint: str, flags: Flags = FLAGS) -> tuple[Sam2Model, str]:
    """The model that `checkpoint` holds, in eval mode, on the CPU, in float32, and what identifies its weights.

    Args:
        config: one of `SAM2_CONFIGS`, with or without folder (`configs/sam2.1/sam2.1_hiera_l.yaml`); it chooses the
            architecture for a `.pt` file, and is not read for a folder or a hub id, which bring their own.
        checkpoint: a `.pt` file of Meta's, a folder written by `save_pretrained`, or a hub id such as
            `facebook/sam2.1-hiera-large`.
        flags: what an error names them.

    Returns:
        The model, and a short string that is the same only for the same weights: 12 hex digits of a SHA-256 (of the
        `.pt` file, as `sha256sum` prints it; of a folder's files) or of the commit of the hub's repository.

    Raises:
        UsageError: nothing is there, it is no checkpoint, or it does not fit the config: each key of the model must be
            there with its shape, and each key that is there must be known.
    """
    path = Path(checkpoint).expanduser()
    if path.is_file():
        where = f"{path} with {flags.config} {config}"
        model = model_from_state(sam2_config(config, flags), read_state(path, flags), where, flags)
        return model, file_digest(path)
    is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", checkpoint) and path.suffix not in (".pt", ".pth", ".safetensors")
    if not path.is_dir() and not is_hub_id:
        hint = "Check the path; a hub id looks like facebook/sam2.1-hiera-large"
        raise UsageError(f"{flags.checkpoint} {checkpoint}: no such file or folder", hint=hint)
    folder = model_folder(flags.checkpoint, str(path))
    return _from_folder(folder, flags), identity_of(folder)


def sam2_config(config: str, flags: Flags = FLAGS) -> Sam2Config:
    """The architecture of one of Meta's configs, as SAM2ImagePredictor uses it.

    Meta's `build_sam2` switches on the choice of a mask by its stability. The object-score head, the sigmoid on
    predicted IoUs and `no_mem_embed` added to the coarsest map, which all eight configs have, are fixed in Sam2Model.

    Raises:
        UsageError: there is no such config.
    """
    from transformers import Sam2Config, Sam2MaskDecoderConfig, Sam2PromptEncoderConfig, Sam2VisionConfig

    name = PurePosixPath(config).name
    if name not in SAM2_CONFIGS:
        raise UsageError(f"{flags.config} {config}: no such config", hint=f"There are {', '.join(SAM2_CONFIGS)}")
    size = _SIZES[name.removesuffix(".yaml").rpartition("_")[2]]
    vision = Sam2VisionConfig(
        backbone_config=_backbone(size),
        backbone_channel_list=size.by_stage(size.channels)[::-1],
        backbone_feature_sizes=[[SIDE // stride, SIDE // stride] for stride in (4, 8, 16)],
        fpn_hidden_size=256,
        fpn_top_down_levels=[2, 3],
        num_feature_levels=3,
    )
    decoder = Sam2MaskDecoderConfig(
        hidden_size=256,
        mlp_dim=2048,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
        dynamic_multimask_via_stability=True,
        dynamic_multimask_stability_delta=0.05,
        dynamic_multimask_stability_thresh=0.98,
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=256, image_size=SIDE, patch_size=16, mask_input_channels=16)
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


def _backbone(size: _Size) -> Any:
    from transformers import Sam2HieraDetConfig

    return Sam2HieraDetConfig(
        hidden_size=size.channels,
        num_attention_heads=size.heads,
        image_size=[SIDE, SIDE],
        blocks_per_stage=list(size.blocks),
        embed_dim_per_stage=size.by_stage(size.channels),
        num_attention_heads_per_stage=size.by_stage(size.heads),
        window_size_per_stage=list(size.windows),
        window_positional_embedding_background_size=[size.background, size.background],
        global_attention_blocks=list(size.global_blocks),
        num_query_pool_stages=3,
        mlp_ratio=4.0,
    )


def read_state(path: Path, flags: Flags = FLAGS, part: str = "model") -> dict[str, Tensor]:
    """The tensors of a `.pt` file by Meta's names, mapped from the file where its format allows it.

    Args:
        path: the file.
        flags: what an error names it.
        part: the key that holds them, where they are not the whole file.

    Raises:
        UsageError: the file cannot be read, or holds no state dict, bare or as its `part`.
    """
    import torch

    content = read_pt(path, flags)
    state = content.get(part, content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        keys = ", ".join(map(repr, list(content)[:4])) if isinstance(content, dict) else ""
        found = f"a dict of {keys or 'nothing'}" if isinstance(content, dict) else f"a {type(content).__name__}"
        hint = f"Such a checkpoint is {{{part!r}: state_dict}}"
        what = f"holds no weights, by themselves or as {part!r}, but {found}"
        raise UsageError(f"{flags.checkpoint} {path}: {what}", hint=hint)
    return {str(key): value for key, value in state.items()}


def read_pt(path: Path, flags: Flags = FLAGS) -> Any:
    """What `torch.save` wrote, by the `weights_only` unpickler, which runs no code of the file; tensors on the CPU.

    Raises:
        UsageError: the file cannot be read.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise UsageError(f"{flags.checkpoint} {path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # whatever the unpickler meets in a file that is no checkpoint
        raise _unreadable(path, error, flags) from None


_HEADS = {
    b"": "is empty",
    b"<": "is a web page, not a checkpoint",
    b"version https://git-lfs": "is a Git LFS pointer, not the checkpoint itself",
    b"PK": "is cut off or damaged",
}


def _unreadable(path: Path, error: Exception, flags: Flags) -> UsageError:
    with path.open("rb") as file:
        head = file.read(1024).lstrip()
    again = "Download it again, from the links in Meta's sam2 repository"
    forbidden = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    if forbidden:
        what = f"asks for {forbidden[1]}: it holds more than weights, and was not loaded"
        return UsageError(f"{flags.checkpoint} {path}: {what}", hint="Save it as {'model': model.state_dict()}")
    for start, what in _HEADS.items():
        if (start and head.startswith(start)) or head == start:
            return UsageError(f"{flags.checkpoint} {path}: {what}", hint=again)
    return UsageError(f"{flags.checkpoint} {path}: not a checkpoint of PyTorch ({type(error).__name__})", hint=again)


def model_from_state(
    config: Sam2Config,
    state: Mapping[str, Tensor],
    where: str,
    flags: Flags = FLAGS,
) -> Sam2Model:
    """A model of the config with copies of Meta's tensors, in eval mode, on the CPU, in float32.

    The model is built without memory of its own and takes the copies as they are; it has no buffer that its state
    dict lacks, so that nothing is left without values.

    Args:
        config: the architecture.
        state: tensors by Meta's names; those of `VIDEO_ONLY` are not used.
        where: what an error names: the file, and the config.
        flags: what it calls them.

    Raises:
        UsageError: keys are missing, left over, or of another shape.
    """
    import torch
    from transformers import Sam2Model

    with torch.device("meta"):
        model = Sam2Model(config)
    ours = model.state_dict()
    expected = {meta: shape for name, value in ours.items() for meta, shape in _shapes(name, value)}
    missing = [key for key in expected if key not in state]
    left_over = [key for key in state if key not in expected and not key.startswith(VIDEO_ONLY)]
    unequal = [
        f"{key} is {list(state[key].shape)}, not {list(shape)}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if missing or left_over or unequal:
        raise _misfit(where, len(expected), missing, left_over, unequal, _hint(config, state, flags), flags)
    joined = {name: torch.cat([state[meta] for meta in meta_names(name)]).float() for name in ours}
    model.load_state_dict(joined, strict=True, assign=True)
    model.train(False)
    return model


def meta_names(name: str) -> tuple[str, ...]:
    """Meta's key, or keys to be joined along their first axis, for a key of Sam2Model."""
    for pattern, meta in _RENAMES:
        name = pattern.sub(meta, name)
    if name == "sam_prompt_encoder.point_embed.weight":  # background, foreground, the two corners of a box
        return tuple(f"sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4))
    return (name,)


def meta_state(model: Sam2Model) -> dict[str, Tensor]:
    """The model's tensors by Meta's names: what `model_from_state` reads; parts for video are not among them."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        parts = meta_names(name)
        state.update(zip(parts, value.chunk(len(parts)), strict=True))
    return state


def _shapes(name: str, value: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Meta's keys for one of ours, with the shape that each must have."""
    parts = meta_names(name)
    return [(meta, (value.shape[0] // len(parts), *value.shape[1:])) for meta in parts]


def _misfit(
    where: str,
    expected: int,
    missing: Sequence[str],
    left_over: Sequence[str],
    unequal: Sequence[str],
    hint: str,
    flags: Flags,
) -> UsageError:
    counts = f"{len(missing)} missing, {len(left_over)} left over, {len(unequal)} of another shape"
    first = [f"missing {key}" for key in missing] + [f"left over {key}" for key in left_over] + list(unequal)
    return UsageError(
        f"{flags.checkpoint} {where}: the {expected} keys of the model do not fit ({counts}; first: {first[0]})",
        hint=hint,
    )


def _hint(config: Sam2Config, state: Mapping[str, Tensor], flags: Flags) -> str:
    """What to do about tensors that do not fit: another config where the encoder's width and depth are those of one."""
    patches = state.get("image_encoder.trunk.patch_embed.proj.weight")
    numbers = {m[1] for key in state if (m := re.match(r"image_encoder\.trunk\.blocks\.(\d+)\.", key))}
    found = (patches.shape[0] if patches is not None else 0, len(numbers))
    vision: Any = config.vision_config
    if found == (vision.backbone_config.hidden_size, sum(vision.backbone_config.blocks_per_stage)):
        return "The size is right, so the file is damaged or changed: use one as Meta published it"
    names = [name for name, size in _SIZES.items() if (size.channels, sum(size.blocks)) == found]
    if not names:
        return "It is of no size of SAM 2 or 2.1: use a checkpoint as Meta published it"
    family = "sam2.1" if "no_obj_embed_spatial" in state else "sam2"
    return f"Its shapes are those of {flags.config} {family}_hiera_{names[0]}.yaml"


def file_digest(path: Path) -> str:
    """12 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _from_folder(folder: Path, flags: Flags) -> Sam2Model:
    """The model that `save_pretrained` wrote; of a video model, the part that Sam2Model has."""
    if not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.pt"))
        hint = f"Name the file: {flags.checkpoint} {files[0]}" if files else "Name a folder written by save_pretrained"
        raise UsageError(f"{flags.checkpoint} {folder}: the folder has no config.json", hint=hint)
    return load_from_hub(flags.checkpoint, lambda: _pretrained(folder, flags), str(folder))


def _pretrained(folder: Path, flags: Flags) -> Sam2Model:
    import torch
    from transformers import Sam2Model

    kind = model_type(folder)
    if kind not in ("sam2", "sam2_video"):
        what = f"holds a model of type {kind!r}, not SAM 2"
        raise UsageError(f"{flags.checkpoint} {folder}: {what}", hint="Name a SAM 2 model")
    loaded: Any = Sam2Model.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, with the rest
    )
    model: Sam2Model = loaded[0]
    report = loaded[1]
    unequal = [f"{key} is {list(found)}, not {list(shape)}" for key, found, shape in sorted(report["mismatched_keys"])]
    missing, left_over = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing or left_over or unequal:
        hint = "Its weights are not those of its config.json: save or download it again"
        raise _misfit(str(folder), len(model.state_dict()), missing, left_over, unequal, hint, flags)
    model.train(False)
    return model
