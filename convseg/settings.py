"""Settings of training. Defaults that are not explained are those published with the model (arXiv 2602.13195)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from convseg.adapter import PICTURE_SIDE, QWEN

WARMUP_SHARE = 0.03  # of the updates


@dataclass(frozen=True)
class TrainSettings:
    """What `train.py` is told. Field names are the flags' names."""

    data_dir: Path
    dataset_jsonl: str = "dataset.jsonl"
    model_cfg: str = "sam2_hiera_s.yaml"
    checkpoint: str = "sam2_hiera_small.pt"
    plm_model_name: str = QWEN
    plm_image_side: int = PICTURE_SIDE
    device: str = "auto"
    precision: str = "auto"
    steps: int = 3000
    batch_size: int = 4
    acc: int = 4
    lr: float = 1e-4
    min_lr: float = 1e-6
    warmup_updates: int = -1
    wd: float = 1e-4
    lora_r: int = 16
    lora_alpha: int = 32
    max_dim: int = 0
    er_k: int = 5
    er_it: int = 1
    augment: bool = False
    train_encoder: bool = False
    num_samples: int | None = None
    seed: int = 1337
    workers: int = 4
    cache_features: Path | None = None
    skip_bad: bool = False
    out: Path = Path("ckpts")
    name: str = "fine_tuned_sam2_batched"
    log_every: int = 20
    save_every: int = 1000
    keep: int = 0
    plm_save: str = "all"
    val_every: int = 200
    val_count: int = 6
    val_dir: Path | None = None
    resume: str | None = None
    resume_sam_path: Path | None = None
    resume_plm_path: Path | None = None
    resume_lora_path: Path | None = None

    @property
    def updates(self) -> int:
        """How often the weights change."""
        return math.ceil(self.steps / self.acc)

    @property
    def warmup(self) -> int:
        """Updates until the learning rate is at its height."""
        return self.warmup_updates if self.warmup_updates >= 0 else int(WARMUP_SHARE * self.updates)

    @property
    def panels(self) -> Path:
        """Where pictures of the validation go."""
        return self.val_dir or self.out / "val"


# What the losses follow from: a run can only go on with the same.
RECIPE = (
    "steps", "batch_size", "acc", "lr", "min_lr", "warmup_updates", "wd", "lora_r", "lora_alpha", "max_dim", "er_k",
    "er_it", "augment", "train_encoder", "seed", "plm_image_side",
)  # fmt: skip


def learning_rate(update: int, settings: TrainSettings) -> float:
    """The rate of an update, the first of which is 0: a straight way up, then a half cosine down to `min_lr`."""
    if update < settings.warmup:
        return settings.lr * (update + 1) / (settings.warmup + 1)
    done = (update - settings.warmup) / max(1, settings.updates - settings.warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2
