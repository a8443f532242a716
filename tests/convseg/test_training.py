from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from convseg import training
from convseg.checkpoints import steps_saved, trained_model
from convseg.metrics import Metrics
from convseg.settings import TrainSettings, learning_rate
from convseg.training import train
from dataengine.errors import OutputError, TrainingError, UsageError
from tests.convseg.conftest import PICTURE_SIDE
from tests.photos import opened

ROOT = Path(__file__).resolve().parents[2]


class Told:
    """A reporter that keeps what it is told.

    Args:
        stop_at: a step at which the process is sent a signal.
    """

    def __init__(self, stop_at: int = 0, number: int = signal.SIGTERM) -> None:
        self.losses: dict[int, float] = {}
        self.lines: list[str] = []
        self.validations: dict[int, Metrics] = {}
        self.first = 0
        self._stop_at, self._number = stop_at, number

    def say(self, text: str) -> None:
        self.lines.append(text)

    def checked(self, done: int, of: int) -> None:
        self.files = (done, of)

    def began(self, first: int, steps: int) -> None:
        self.first = first

    def stepped(self, step: int, values: Mapping[str, float] | None) -> None:
        if values:
            self.losses[step] = values["loss"]
        if step == self._stop_at:
            os.kill(os.getpid(), self._number)

    def validated(self, step: int, found: Metrics) -> None:
        self.validations[step] = found


@pytest.fixture
def settings(sam2: Path, qwen: Path, scenes: Path, tmp_path: Path) -> TrainSettings:
    return TrainSettings(
        data_dir=scenes,
        checkpoint=str(sam2),
        plm_model_name=str(qwen),
        plm_image_side=PICTURE_SIDE,
        lora_r=4,
        lora_alpha=8,
        device="cpu",
        steps=11,
        batch_size=3,
        acc=2,
        lr=2e-3,
        er_k=0,
        workers=0,
        out=tmp_path / "out",
        name="run",
        log_every=1,
        save_every=0,
        val_every=0,
        val_count=2,
    )


def with_(settings: TrainSettings, **changes: Any) -> TrainSettings:
    return dataclasses.replace(settings, **changes)


def trained(settings: TrainSettings, told: Told | None = None) -> Told:
    told = told or Told()
    assert train(settings, told) == 0
    return told


# Going on.


@pytest.mark.parametrize(
    ("stop_at", "changes"),
    [
        (4, {}),
        (7, {"workers": 1}),  # between two updates, whose first gradient is kept
        (5, {"cache_features": Path("features"), "batch_size": 4}),
        (3, {"train_encoder": True, "augment": True, "acc": 1}),
        (9, {"acc": 4}),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_losses(
    stop_at: int, changes: dict[str, Any], settings: TrainSettings, tmp_path: Path
) -> None:
    if "cache_features" in changes:
        changes = {**changes, "cache_features": tmp_path / "features"}
    whole = trained(with_(settings, out=tmp_path / "whole", **changes))
    stopped = Told(stop_at)
    assert train(with_(settings, **changes), stopped) == 128 + signal.SIGTERM
    assert list(stopped.losses) == list(range(1, stop_at + 1))
    assert stopped.lines[-1] == f"stopped at step {stop_at}; all is saved: go on with --resume"
    again = trained(with_(settings, resume="latest", **changes))
    assert again.first == stop_at + 1
    losses = {**stopped.losses, **again.losses}
    assert losses == pytest.approx(whole.losses, abs=1e-5)
    assert list(losses) == list(range(1, 12))
    assert len({round(loss, 6) for loss in losses.values()}) > 8
    ours, theirs = (
        torch.load(out / "run_final.torch", weights_only=True)["model"] for out in (settings.out, tmp_path / "whole")
    )
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-5)


def test_a_killed_run_goes_on_from_its_last_saved_step(settings: TrainSettings, tmp_path: Path) -> None:
    whole = trained(with_(settings, out=tmp_path / "whole", save_every=4))
    trained(with_(settings, save_every=4))
    (settings.out / ".run_8.torch.tmp").write_bytes(b"half")
    (settings.out / "run_state_8.torch").unlink()  # killed before it was whole
    assert steps_saved(settings.out, "run") == [4]
    again = trained(with_(settings, resume="latest", save_every=4))
    assert again.first == 5
    assert again.losses == pytest.approx({s: whole.losses[s] for s in range(5, 12)}, abs=1e-5)
    assert [p.name for p in settings.out.iterdir() if p.name.startswith(".")] == []


def test_a_step_can_be_chosen_and_old_ones_removed(settings: TrainSettings) -> None:
    trained(with_(settings, save_every=2, keep=3))
    assert steps_saved(settings.out, "run") == [6, 8, 10]
    assert not list(settings.out.glob("*_4.torch")) and not (settings.out / "lora_plm_adapter_4").exists()
    assert trained(with_(settings, resume="8")).first == 9


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "has checkpoints already. Choose another --out, or go on with"),
        ({"resume": "5"}, "no such checkpoint of run in .* Steps there: 4, 8"),
        ({"resume": "x"}, "no such checkpoint"),
        ({"resume": "latest", "name": "other"}, "no such checkpoint of other in .* Steps there: none"),
        ({"resume": "latest", "lr": 1e-5}, "--resume: lr is 1e-05, but was 0.002 at step 8"),
        ({"resume": "latest", "steps": 30}, "--resume: steps is 30, but was 11"),
        ({"resume": "latest", "num_samples": 20}, "--resume: data is "),
        ({"resume": "latest", "precision": "bfloat16"}, "--resume: precision is bfloat16, but was float32"),
        ({"resume": "latest", "resume_sam_path": Path("x")}, "--resume goes on with saved weights, "),
        ({"name": "other"}, "has checkpoints already. Choose another --out"),
    ],
)
def test_what_cannot_go_on_is_refused(changes: dict[str, Any], told: str, settings: TrainSettings) -> None:
    trained(with_(settings, save_every=4))
    before = {p: p.stat().st_mtime_ns for p in settings.out.rglob("*")}
    with pytest.raises(UsageError, match=told):
        train(with_(settings, **changes), Told())
    assert {p: p.stat().st_mtime_ns for p in settings.out.rglob("*")} == before


def test_a_run_begins_with_the_weights_of_another(settings: TrainSettings, tmp_path: Path) -> None:
    first = trained(with_(settings, steps=8))
    warm = {
        "resume_sam_path": settings.out / "run_final.torch",
        "resume_plm_path": settings.out / "run_plm_final.torch",
        "resume_lora_path": settings.out / "lora_plm_adapter_final",
    }
    frozen = {"lr": 0.0, "min_lr": 0.0, "steps": 8}
    second = trained(with_(settings, out=tmp_path / "two", **warm, **frozen))
    cold = trained(with_(settings, out=tmp_path / "three", **frozen))
    assert second.losses[1] < cold.losses[1] == pytest.approx(first.losses[1])
    assert second.validations[8].giou != cold.validations[8].giou or second.losses != cold.losses


@pytest.mark.parametrize("flag", ["resume_sam_path", "resume_plm_path", "resume_lora_path"])
def test_weights_that_are_not_there(flag: str, settings: TrainSettings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')} "):
        train(with_(settings, **{flag: tmp_path / "gone"}), Told())


# What it learns and writes.


def test_the_loss_falls(settings: TrainSettings) -> None:
    told = trained(with_(settings, steps=60, acc=1, batch_size=8, train_encoder=True))
    first, last = (sum(told.losses[s] for s in steps) / 5 for steps in (range(1, 6), range(56, 61)))
    assert last < 0.7 * first


def test_results_are_where_the_published_ones_are(settings: TrainSettings) -> None:
    told = trained(with_(settings, save_every=5, val_every=4))
    names = {p.name for p in settings.out.iterdir()}
    for tag in ("5", "10", "final"):
        assert {f"run_{tag}.torch", f"run_plm_{tag}.torch", f"lora_plm_adapter_{tag}"} <= names
    assert sorted(told.validations) == [4, 8, 11]
    pictures = sorted(p.name for p in (settings.out / "val").iterdir())
    assert pictures == ["step_4.png", "step_8.png", "step_final.png"]
    assert min(opened(settings.out / "val" / "step_8.png").size) > 400
    model = trained_model(str(settings.out / "run_final.torch"), str(settings.out / "run_plm_final.torch"))
    assert model.build.plm_model_name == settings.plm_model_name and model.build.sam2


def test_tensorboard_has_the_scalars(settings: TrainSettings) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = trained(with_(settings, val_every=4))
    events = EventAccumulator(str(settings.out / "tb" / "run")).Reload()
    losses = {e.step: e.value for e in events.Scalars("train/loss")}
    assert losses == pytest.approx(told.losses, abs=1e-6)
    assert {"train/bce", "train/dice", "train/iou", "train/lr", "val/giou", "val/ciou"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Images("val/panels")] == [4, 8, 11]


def test_the_cache_changes_no_loss_and_saves_the_encoder(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(settings)
    passes: list[int] = []
    encode = training.Trainer._maps

    def counted(self: Any, batch: Any) -> Any:
        passes.append(len(batch.pixels))
        return encode(self, batch)

    monkeypatch.setattr(training.Trainer, "_maps", counted)
    for out in ("one", "two"):
        passes.clear()
        cached = trained(with_(settings, out=tmp_path / out, cache_features=tmp_path / "features"))
        assert cached.losses == pytest.approx(plain.losses, abs=1e-5)
    assert sum(passes) == 0
    used = trained(with_(settings, out=tmp_path / "three", cache_features=tmp_path / "f", augment=True, steps=2))
    assert "--cache_features: not used, since photos are changed at random" in used.lines
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("steps", "acc", "warmup", "expected"),
    [
        (100, 1, 10, {0: 1 / 11, 9: 10 / 11, 10: 1.0, 55: 0.505, 99: 0.0103}),
        (100, 4, 0, {0: 1.0, 25: 0.01}),
        (1000, 1, -1, {29: 30 / 31, 30: 1.0}),
        (1, 1, 0, {0: 1.0}),
    ],
)
def test_the_learning_rate_goes_up_and_down(
    steps: int, acc: int, warmup: int, expected: dict[int, float], settings: TrainSettings
) -> None:
    how = with_(settings, steps=steps, acc=acc, warmup_updates=warmup, lr=1.0, min_lr=0.01)
    assert {u: learning_rate(u, how) for u in expected} == pytest.approx(expected, abs=1e-3)


def test_features_of_another_encoder_are_not_taken(settings: TrainSettings, tmp_path: Path) -> None:
    """Those of a trained encoder, though it began as the checkpoint that the cache was filled from."""
    features = tmp_path / "features"
    trained(with_(settings, out=tmp_path / "plain", cache_features=features))
    trained(with_(settings, out=tmp_path / "encoder", train_encoder=True, lr=1e-2, acc=1))
    warm = with_(settings, steps=2, resume_sam_path=tmp_path / "encoder" / "run_final.torch")
    cached = trained(with_(warm, out=tmp_path / "cached", cache_features=features))
    assert cached.losses == pytest.approx(trained(warm).losses, abs=1e-5)


# What ends it.


def test_a_loss_that_is_no_number_ends_training(settings: TrainSettings) -> None:
    with pytest.raises(TrainingError, match=r"the loss is no number any more \(last samples: dataset.jsonl line"):
        train(with_(settings, lr=1e30, steps=40, acc=1), Told())


def test_full_memory_is_told(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Trainer, "_learn", full)
    with pytest.raises(TrainingError, match=r"out of memory on cpu\. Lower --batch-size, and raise --acc as much"):
        train(settings, Told())


def test_a_folder_that_cannot_be_written(settings: TrainSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        train(with_(settings, out=tmp_path / "file" / "out"), Told())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_an_error_where_one_is_named(settings: TrainSettings) -> None:
    with pytest.raises(UsageError, match="--device cuda: torch sees no GPU"):
        train(with_(settings, device="cuda"), Told())
    assert not settings.out.exists()


def test_a_signal_to_all_of_its_processes_saves(settings: TrainSettings, tmp_path: Path) -> None:
    """As a shell, torchrun or a batch system sends it: to the workers that read photos as well."""
    flags = ["--data-dir", settings.data_dir, "--checkpoint", settings.checkpoint, "--steps", 100000]
    model = ["--plm-model-name", settings.plm_model_name, "--plm-image-side", PICTURE_SIDE, "--device", "cpu"]
    where = ["--out", tmp_path / "out", "--name", "run", "--workers", 2, "--log-every", 1, "--val-every", 0]
    command = list(map(str, [sys.executable, ROOT / "train.py", *flags, *model, *where]))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True) as process:
        assert process.stdout and process.stderr
        while not process.stdout.readline().startswith("step 3/"):
            assert process.poll() is None, process.stderr.read()
        os.killpg(process.pid, signal.SIGTERM)
        told, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "all is saved: go on with --resume" in told and "Traceback" not in errors
    assert len(steps_saved(tmp_path / "out", "run")) == 1


# Several processes.

TORCHRUN = """
    import sys
    from convseg import adapter
    adapter.LORA_DROPOUT = 0.0  # what is random differs between one process and two
    from convseg.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_learn_what_one_with_their_samples_does(settings: TrainSettings, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TORCHRUN))
    where = ["--data-dir", settings.data_dir, "--checkpoint", settings.checkpoint, "--name", "run"]
    model = ["--plm-model-name", settings.plm_model_name, "--plm-image-side", PICTURE_SIDE, "--lora-r", 4]
    loop = ["--device", "cpu", "--steps", 6, "--acc", 2, "--lr", 1e-2, "--er-k", 0, "--workers", 0]
    flags = ["train", *where, *model, *loop, "--log-every", 1, "--save-every", 4, "--val-every", 3]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(out: str, batch: int, *launcher: str, expected: int = 0) -> str:
        command = [sys.executable, *launcher, str(script), *map(str, flags), "--batch-size", str(batch), "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == expected, done.stderr
        return done.stdout + done.stderr

    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone")
    told = run("two", 2, *torchrun)
    assert told.count("step 6/6") == 1 and "2 processes, cpu" in told
    run("one", 4)
    states = [torch.load(tmp_path / out / "run_final.torch", weights_only=True)["model"] for out in ("one", "two")]
    for key in states[0]:
        if not key.endswith("k_proj.bias"):  # whose gradient is rounding alone, which Adam makes as large as any
            torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=1e-4, msg=key)
    before = torch.load(tmp_path / "one" / "run_4.torch", weights_only=True)["model"]
    moved = max((states[0][key] - before[key]).abs().max().item() for key in before if before[key].is_floating_point())
    assert moved > 2e-3
    assert json.loads((tmp_path / "two" / "lora_plm_adapter_final" / "adapter_config.json").read_text())["r"] == 4
