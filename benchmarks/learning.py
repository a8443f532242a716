"""Does it learn? Drawn scenes, a tiny model from random weights, the real train.py and eval.py.

    python -m benchmarks.learning

2,000 scenes of three or four coloured shapes are drawn to train on and 200 to test on (`convseg/scenes.py`): prompts by
colour, shape, size and place, some of which fit nothing, with exact masks. Three models are tested: the one that is not
trained, one that is trained blind (every prompt replaced by the same word, in training and in testing), and one that is
trained on the prompts. Claimed:

- the trained model's gIoU on the held-out scenes is at least 0.80;
- and at least 0.30 above the blind one's;
- training both, side by side on 2 cores, takes under 20 minutes.

What a blind model can do is all that the pictures alone tell, so the difference is what it learnt from the prompts.
The image encoder's weights are random here, so it is trained too. gIoU is printed by what prompts speak of as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convseg.scenes import every_text, write_scenes
from convseg.tiny import write_tiny_qwen, write_tiny_sam2

ROOT = Path(__file__).resolve().parent.parent
HOW = ("--train_encoder", "--acc", "1", "--batch-size", "16", "--lr", "8e-4", "--warmup-updates", "200", "--er-k", "0")
KINDS = {"trained": "", "blind": "_blind"}


def main() -> int:
    """Train, test, compare; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=3000)
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
    _done(_training(folder, "untrained", "train", 1, "--lr", "0", "--min-lr", "0"))
    found = {"untrained": _test(folder, "untrained", "test")}
    began = time.monotonic()
    side_by_side = [_training(folder, name, f"train{data}", steps) for name, data in KINDS.items()]
    for training in side_by_side:
        _done(training)
    minutes = (time.monotonic() - began) / 60
    found |= {name: _test(folder, name, f"test{data}") for name, data in KINDS.items()}
    print(f"{steps} steps took {minutes:.1f} minutes, both models side by side")
    for name, giou in found.items():
        print(f"{name}: held-out gIoU {giou['all']:.3f} ({', '.join(f'{k} {v:.2f}' for k, v in giou.items())})")
    above = found["trained"]["all"] - found["blind"]["all"]
    claims = {
        f"gIoU {found['trained']['all']:.3f} (>= 0.80)": found["trained"]["all"] >= 0.80,
        f"{above:.3f} above blind (>= 0.30)": above >= 0.30,
        f"{minutes:.1f} minutes (< 20)": minutes < 20,
    }
    for claim, holds in claims.items():
        print(f"{'holds' if holds else 'fails'}: {claim}")
    return 0 if all(claims.values()) else 1


def _training(folder: Path, name: str, data: str, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """train.py, begun."""
    return _begun(
        "train.py", "--data-dir", folder / data, "--checkpoint", folder / "sam2", "--plm-model-name", folder / "qwen",
        "--plm-image-side", "56", "--workers", "0", "--steps", steps, "--val-every", "0", "--save-every", "0",
        "--log-every", "200", "--out", folder / name, "--name", name, *HOW, *more,
    )  # fmt: skip


def _test(folder: Path, name: str, data: str) -> dict[str, float]:
    """The gIoU that eval.py found, of all and of what prompts speak of."""
    stem = folder / name / name
    testing = _begun(
        "eval.py", "--input_json", folder / data / "items.json", "--final_ckpt", f"{stem}_final.torch",
        "--plm_ckpt", f"{stem}_plm_final.torch", "--out", folder / name / "eval", "--workers", "1",
    )  # fmt: skip
    _done(testing)
    results = json.loads((folder / name / "eval" / "results.json").read_text())
    of_all = {"all": results["metrics"], **results["concepts"]}
    return {concept: float(metrics["giou"]["value"]) for concept, metrics in of_all.items()}


def _begun(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # what is this small takes longer on more
    return subprocess.Popen([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=ROOT, env=env)


def _done(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        sys.exit(process.returncode)


if __name__ == "__main__":
    sys.exit(main())
