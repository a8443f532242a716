"""Training: SAM 2's mask decoder and the language adapter learn from pairs of a prompt and a mask."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from convseg.batches import Batch, FeatureCache, Order, batches
from convseg.checkpoints import (
    FINAL,
    Build,
    Model,
    has_checkpoints,
    load_lora,
    load_plm,
    load_sam,
    new_model,
    read_training_state,
    remove_step,
    save_state,
    save_weights,
    steps_saved,
)
from convseg.data import Sample, checked, data_digest, read_jsonl, split_by_image, usable
from convseg.distributed import Team, computing_in, memory_told, number_type
from convseg.evaluation import predictions
from convseg.losses import MaskLoss, mask_loss
from convseg.metrics import Metrics, iou, metrics
from convseg.network import ImageMaps
from convseg.panels import stacked
from convseg.settings import RECIPE, TrainSettings, learning_rate
from dataengine.errors import TrainingError, UsageError
from dataengine.packing import png
from dataengine.run_folder import make_folder, write_whole

VALIDATION_SHARE = 0.01  # of the photos
CLIP = 1.0  # norm of the gradient
LATEST = "latest"  # of --resume


class Reporter(Protocol):
    """Who is told how training goes."""

    def say(self, text: str) -> None:
        """A line for the user."""
        ...

    def checked(self, done: int, of: int) -> None:
        """So many files of the data are checked."""
        ...

    def began(self, first: int, steps: int) -> None:
        """Training begins with step `first` of `steps`."""
        ...

    def stepped(self, step: int, values: Mapping[str, float] | None) -> None:
        """A step is done; every `--log-every` steps with its loss, bce, dice, iou, lr and samples a second."""
        ...

    def validated(self, step: int, found: Metrics) -> None:
        """A validation is done."""
        ...


def train(settings: TrainSettings, reporter: Reporter) -> int:
    """Train; the exit code: 0, or 130 or 143 where a signal stopped it, after all was saved.

    Raises:
        UsageError: a setting, the data or a model is wrong; nothing was begun.
        TrainingError: training cannot go on.
        OutputError: results cannot be written.
    """
    team = Team.join(settings.device)
    try:
        with memory_told(team.device, "Lower --batch-size, and raise --acc as much"):
            return _train(settings, reporter, team)
    finally:
        team.leave()


def _train(settings: TrainSettings, reporter: Reporter, team: Team) -> int:
    dtype = number_type(team.device, settings.precision)
    if dtype == torch.float16:
        raise UsageError("--precision float16: gradients are lost in it", hint="Train in bfloat16 or float32")
    earlier = _step_to_resume(settings)
    samples = _samples(settings, reporter, team)
    make_folder(settings.out)
    torch.manual_seed(settings.seed)
    build = Build(
        sam2={},
        plm_model_name=settings.plm_model_name,
        lora_r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        plm_image_side=settings.plm_image_side,
        max_dim=settings.max_dim,
    )
    model = new_model(
        settings.model_cfg,
        settings.checkpoint,
        build,
        dtype=dtype if team.on_gpu else torch.float32,
        train_encoder=settings.train_encoder,
    )
    recipe = _recipe(settings, model, data_digest(samples), team, dtype)
    state = None if earlier is None else _resumed(settings, model, recipe, earlier)
    if not state:
        _warm_start(settings, model)
    trained, held = split_by_image(samples, VALIDATION_SHARE, settings.seed)
    model.network.to(team.device)
    if team.leads:
        for line in _told(settings, model, trained, held, team, dtype):
            reporter.say(line)
    trainer = Trainer(settings, reporter, team, model, dtype, trained, held, recipe)
    if state:
        trainer.restore(state)
    return trainer.run()


def _samples(settings: TrainSettings, reporter: Reporter, team: Team) -> list[Sample]:
    """The samples, each checked, before anything large is loaded."""
    path = settings.data_dir / settings.dataset_jsonl

    def found() -> list[Sample]:
        listed = read_jsonl(path, settings.data_dir, settings.num_samples)
        loaded = checked(listed, settings.workers, reporter.checked)
        return usable(loaded, str(path), skip_bad=settings.skip_bad, say=reporter.say)

    return team.agreed(found)


def _warm_start(settings: TrainSettings, model: Model) -> None:
    if settings.resume_sam_path:
        load_sam(model.network, settings.resume_sam_path, "--resume-sam-path")
    if settings.resume_plm_path:
        load_plm(model.network.adapter, settings.resume_plm_path, "--resume-plm-path")
    if settings.resume_lora_path:
        load_lora(model.network.adapter, str(settings.resume_lora_path), "--resume-lora-path")


def _step_to_resume(settings: TrainSettings) -> int | None:
    """The saved step that training goes on from; None where it begins anew, in a folder without checkpoints."""
    saved = steps_saved(settings.out, settings.name)
    if settings.resume is None:
        if has_checkpoints(settings.out):
            hint = "Choose another --out" + (", or go on with --resume" if saved else "")
            raise UsageError(f"--out {settings.out}: has checkpoints already", hint=hint)
        return None
    if settings.resume_sam_path or settings.resume_plm_path or settings.resume_lora_path:
        hint = "Leave out either --resume or --resume-…-path"
        raise UsageError("--resume goes on with saved weights, --resume-…-path begins with others", hint=hint)
    step = saved[-1] if settings.resume == LATEST and saved else _number(settings.resume)
    if step not in saved:
        there = ", ".join(map(str, saved)) or "none"
        what = f"--resume: no such checkpoint of {settings.name} in {settings.out}"
        raise UsageError(what, hint=f"Steps there: {there}")
    return step


def _resumed(settings: TrainSettings, model: Model, recipe: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The state of a saved step, its weights loaded."""
    state = read_training_state(settings.out, settings.name, step)
    for name, value in recipe.items():
        if state["recipe"].get(name) != value:
            before = state["recipe"].get(name)
            what = f"--resume: {name.replace('_', '-')} is {value}, but was {before} at step {step}"
            raise UsageError(what, hint="Go on with what it was, or begin anew in another --out")
    load_sam(model.network, settings.out / f"{settings.name}_{step}.torch", "--resume")
    load_plm(model.network.adapter, settings.out / f"{settings.name}_plm_{step}.torch", "--resume")
    return state


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _recipe(settings: TrainSettings, model: Model, data: str, team: Team, dtype: torch.dtype) -> dict[str, Any]:
    """All that the losses follow from."""
    return {
        **{name: getattr(settings, name) for name in RECIPE},
        "data": data,
        "language_model": model.weights["language"],
        "processes": team.ranks,
        "precision": str(dtype).removeprefix("torch."),
    }


def _told(
    settings: TrainSettings, model: Model, trained: Sequence[Sample], held: Sequence[Sample], team: Team, dtype: Any
) -> Iterator[str]:
    network = model.network
    all_, learnt = (sum(p.numel() for p in network.parameters() if p.requires_grad or w) for w in (True, False))
    which = "the same, since there is one photo" if held == trained else "of other photos"
    yield f"{len(trained):,} samples to train on, {len(held):,} to validate on, {which}"
    yield f"{learnt / 1e6:,.2f} of {all_ / 1e6:,.2f} million parameters are trained"
    devices = f"{team.ranks} processes, {team.device.partition(':')[0]}" if team.ranks > 1 else team.device
    each = (
        f"{settings.batch_size} samples x {settings.acc} steps x {team.ranks}"
        if team.ranks > 1
        else (f"{settings.batch_size} samples x {settings.acc} steps")
    )
    yield f"{devices}, {str(dtype).removeprefix('torch.')}; an update sees {each}"
    if settings.cache_features and (settings.augment or settings.train_encoder):
        why = "photos are changed at random" if settings.augment else "the encoder is trained"
        yield f"--cache_features: not used, since {why}"


class Trainer:
    """The loop, with what it changes.

    Args:
        model: on the team's device.
        dtype: of the matrix products.
        trained, held: samples to train and to validate on.
        recipe: what the losses follow from, to be kept.
    """

    def __init__(
        self,
        settings: TrainSettings,
        reporter: Reporter,
        team: Team,
        model: Model,
        dtype: torch.dtype,
        trained: Sequence[Sample],
        held: Sequence[Sample],
        recipe: Mapping[str, Any],
    ) -> None:
        self.settings, self.reporter, self.team, self.model, self.dtype = settings, reporter, team, model, dtype
        self.network = model.network
        self.trained, self.held = list(trained), list(held)
        self.recipe = dict(recipe)
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.lr, weight_decay=settings.wd)
        self.step = self.update = 0
        self.cache = self._cache()
        self.shaping = model.shaping(settings.er_k, settings.er_it, augment=settings.augment)

    def _cache(self) -> FeatureCache | None:
        settings = self.settings
        if settings.cache_features is None or settings.augment or settings.train_encoder:
            return None
        sizes = [self.model.square, self.network.side, self.model.reader.side]
        return FeatureCache(settings.cache_features, [self.network.encoder_digest(), *sizes, self.dtype])

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the weights are loaded already."""
        self.step, self.update = state["step"], state["update"]
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(self.parameters, state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def run(self) -> int:
        """Train to the last step; the exit code."""
        settings = self.settings
        if self.team.leads:
            self.reporter.began(self.step + 1, settings.steps)
        with _signals() as self.caught, self._writer() as self.writer:
            code = self._steps()
            if self.cache:
                self.cache.close()
            if not code:
                self._save(FINAL, state=False)
                self._validate(self.held, FINAL, workers=settings.workers)
                code = 128 + self.caught[0] if self.caught else 0
        return code

    def _steps(self) -> int:
        settings, team = self.settings, self.team
        shared = team.shared(self.network)
        self.network.train()
        order = Order(len(self.trained), settings.batch_size, settings.seed, team.rank, team.ranks)
        made = batches(
            self.trained,
            self.model.reader,
            self.shaping,
            order,
            range(self.step + 1, settings.steps + 1),
            seed=(settings.seed, team.rank),
            cache=self.cache,
            workers=settings.workers,
            pin=team.on_gpu,
        )
        with contextlib.closing(made):
            return self._each(shared, made)

    def _each(self, shared: torch.nn.Module, made: Iterator[Batch]) -> int:
        settings, team = self.settings, self.team
        self._set_clock()
        for batch in made:
            self.step += 1
            self._learn(shared, batch.to(team.device))
            if settings.val_every and self.step % settings.val_every == 0 and self.step < settings.steps:
                self._validate(self._shown(), str(self.step))
            code = team.highest(self.caught[0] if self.caught else 0)
            if code or (settings.save_every and self.step % settings.save_every == 0 and self.step < settings.steps):
                self._save(str(self.step))
            if code:
                if team.leads:
                    self.reporter.say(f"stopped at step {self.step}; all is saved: go on with --resume")
                return 128 + code
        return 0

    def _learn(self, shared: torch.nn.Module, batch: Batch) -> None:
        settings, team = self.settings, self.team
        # What is random (LoRA's dropout) follows from the step, so that training can go on at any.
        torch.manual_seed((settings.seed * 1_000_003 + self.step) * team.ranks + team.rank)
        with computing_in(team.device, self.dtype):
            images = batch.pixels if settings.train_encoder else self._maps(batch)
            logits = shared(images, batch.which, batch.inputs)
        loss = mask_loss(logits, batch.target, batch.inside)
        torch.autograd.backward(loss.total / settings.acc)
        if self.step % settings.acc == 0 or self.step == settings.steps:
            self._change_weights(batch)
        logs = self.step % settings.log_every == 0
        if team.leads:
            self.reporter.stepped(self.step, self._values(loss, logits, batch) if logs else None)

    def _maps(self, batch: Batch) -> ImageMaps:
        """Features of the batch's photos, from the cache and from the encoder."""
        if not len(batch.pixels):
            assert batch.maps is not None  # a batch has a photo
            return batch.maps
        fresh = self.network.encode(batch.pixels)
        if self.cache:
            self.cache.put(batch.keys, fresh, batch.pictures)
        return fresh if batch.maps is None else batch.maps.joined(fresh)

    def _change_weights(self, batch: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.update, self.settings)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        if not math.isfinite(norm):
            where = ", ".join(s.where for s in batch.samples)
            raise TrainingError(
                f"step {self.step}: the loss is no number any more (last samples: {where})",
                hint="Begin anew in another --out with a lower --lr; --resume-…-path begin with saved weights",
                reason="not_finite",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.update += 1

    @torch.no_grad()
    def _values(self, loss: MaskLoss, logits: Tensor, batch: Batch) -> dict[str, float]:
        seconds = max(1e-9, time.monotonic() - self.clock[1])
        seen = (self.step - self.clock[0]) * self.settings.batch_size * self.team.ranks
        values = {
            "loss": float(loss.total),
            "bce": float(loss.bce),
            "dice": float(loss.dice),
            "iou": _mean_iou(logits, batch),
            "lr": self.optimizer.param_groups[0]["lr"],
            "samples_per_second": seen / seconds,
        }
        self._set_clock()
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, self.step)
        return values

    def _set_clock(self) -> None:
        """From now on the samples a second are counted."""
        self.clock = self.step, time.monotonic()

    # Validation and saving, by the process that leads.

    def _shown(self) -> list[Sample]:
        """Some of what is held back, evenly over it."""
        every = max(1, len(self.held) // max(1, self.settings.val_count))
        return self.held[::every][: self.settings.val_count]

    def _validate(self, samples: Sequence[Sample], tag: str, *, workers: int = 0) -> None:
        if self.team.leads and samples:
            self.network.eval()
            shown = {sample.id for sample in self._shown()}
            overlaps, panels = [], []
            found = predictions(self.model, samples, self.team.device, self.dtype, workers=workers)
            for p in found:
                overlaps.append(p.overlap)
                if p.sample.id in shown:
                    panels.append(p.panel())
                if self.caught:
                    break
            self.network.train()
            measured = metrics(overlaps)
            self._write_validation(measured, stacked(panels) if panels else None, tag)
        self.team.wait()
        self._set_clock()

    def _write_validation(self, measured: Metrics, picture: Any, tag: str) -> None:
        for name in ("giou", "ciou", "left_empty"):
            value = getattr(measured, name).value
            if value is not None:
                self.writer.add_scalar(f"val/{name}", value, self.step)
        if picture is not None:
            write_whole(self.settings.panels / f"step_{tag}.png", png(picture))
            self.writer.add_image("val/panels", picture, self.step, dataformats="HWC")
        self.reporter.validated(self.step, measured)

    def _save(self, tag: str, *, state: bool = True) -> None:
        settings = self.settings
        if self.team.leads:
            save_weights(settings.out, settings.name, tag, self.model, frozen=settings.plm_save == "all")
            if state:
                save_state(settings.out, settings.name, tag, self._state())
            old = steps_saved(settings.out, settings.name)[: -settings.keep] if settings.keep else []
            for step in old:
                remove_step(settings.out, settings.name, step)
        self.team.wait()
        self._set_clock()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "update": self.update,
            "recipe": self.recipe,
            "build": asdict(self.model.build),
            "optimizer": self.optimizer.state_dict(),
            "gradients": [p.grad for p in self.parameters],  # of an update that is not complete yet
        }

    @contextmanager
    def _writer(self) -> Iterator[Any]:
        """TensorBoard's, where it goes on from the step; nobody's, where this process does not lead."""
        if not self.team.leads:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        settings = self.settings
        writer: Any = SummaryWriter(str(settings.out / "tb" / settings.name), purge_step=self.step + 1)
        try:
            yield writer
        finally:
            writer.close()


def _mean_iou(logits: Tensor, batch: Batch) -> float:
    predicted, truth = (logits > 0) & batch.inside, batch.target >= 0.5
    both, either = (predicted & truth).sum((1, 2)).tolist(), (predicted | truth).sum((1, 2)).tolist()
    return sum(map(iou, both, either)) / len(both)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals met so far, Ctrl-C and SIGTERM: the first ends training after its step, a second at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever calls deals with signals
        pass
    try:
        yield caught
    finally:
        for caught_one, handler in before.items():
            signal.signal(caught_one, handler)
