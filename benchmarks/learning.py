"""Does it learn? Drawn scenes, a tiny model from random weights, the real train.py and eval.py.

    python -m benchmarks.learning

2,000 scenes of three or four coloured shapes are drawn to train on and 200 to test on (`convseg/scenes.py`): prompts by
colour, shape, size and place, some of which fit nothing, with exact masks. Three models are tested: the one that is not
trained, one that is trained blind (every prompt replaced by the same word, in training and in testing), and one that is
trained on the prompts. Claimed:

- the trained model's gIoU on the held-out scenes is at least 0.80;
- and at least 0.30 above the blind one's;
- each training takes under 20 minutes on 2 cores.

What a blind model can do is all that the pictures alone tell, so the difference is what it learnt from the prompts.
The image encoder's weights are random here, so it is trained too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convseg.scenes import every_text, write_scenes
from convseg.tiny import write_tiny_qwen, write_tiny_sam2

ROOT = Path(__file__).resolve().parent.parent
HOW = ("--train_encoder", "--acc", "1", "--batch-size", "16", "--lr", "4e-4", "--warmup-updates", "200", "--er-k", "0")


def main() -> int:
    """Train, test, compare; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=6000)
    arguments.add_argument("--out", type=Path, help="keep all there")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return _compare(given.out or Path(folder), given.steps)


def _compare(folder: Path, steps: int) -> int:
    write_tiny_sam2(folder / "sam2")
    write_tiny_qwen(folder / "qwen", every_text())
    for name, count, seed in (("train", 2000, 0), ("test", 200, 1)):
        write_scenes(folder / name, count, seed=seed)
        write_scenes(folder / f"{name}_blind", count, seed=seed, blind=True)
    _train(folder, "untrained", "train", 1, "--lr", "0", "--min-lr", "0")
    untrained = _test(folder, "untrained", "test")
    minutes, found = {}, {}
    for name, data in (("trained", "train"), ("blind", "train_blind")):
        minutes[name] = _train(folder, name, data, steps)
        found[name] = _test(folder, name, data.replace("train", "test"))
        print(f"{name}: gIoU {found[name]:.3f} after {minutes[name]:.1f} minutes, {steps} steps", flush=True)
    print(f"held-out gIoU: untrained {untrained:.3f}, blind {found['blind']:.3f}, trained {found['trained']:.3f}")
    claims = {
        f"gIoU {found['trained']:.3f} (>= 0.80)": found["trained"] >= 0.80,
        f"{found['trained'] - found['blind']:.3f} above blind (>= 0.30)": found["trained"] - found["blind"] >= 0.30,
        f"{max(minutes.values()):.1f} minutes at most (< 20)": max(minutes.values()) < 20,
    }
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'fails'}: {claim}")
    return 0 if all(claims.values()) else 1


def _train(folder: Path, name: str, data: str, steps: int, *more: str) -> float:
    """Minutes that train.py took."""
    began = time.monotonic()
    _run(
        "train.py", "--data-dir", folder / data, "--checkpoint", folder / "sam2", "--plm-model-name", folder / "qwen",
        "--plm-image-side", "56", "--workers", "1", "--steps", steps, "--val-every", "0", "--save-every", "0",
        "--log-every", "200", "--out", folder / name, "--name", name, *HOW, *more,
    )  # fmt: skip
    return (time.monotonic() - began) / 60


def _test(folder: Path, name: str, data: str) -> float:
    """The gIoU that eval.py found."""
    stem = folder / name / name
    _run(
        "eval.py", "--input_json", folder / data / "items.json", "--final_ckpt", f"{stem}_final.torch",
        "--plm_ckpt", f"{stem}_plm_final.torch", "--out", folder / name / "eval", "--workers", "1",
    )  # fmt: skip
    results = json.loads((folder / name / "eval" / "results.json").read_text())
    return float(results["metrics"]["giou"]["value"])


def _run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], check=True, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
