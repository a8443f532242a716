"""The whole loop offline: photos and drawn scenes -> dataengine -> export -> train.py -> eval.py, on tiny models.

Each step is the command a user would give; it is printed before it runs. `make loop` runs it. The models have random
weights and learn for a few minutes, so the score says that the loop works, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convseg.scenes import draw_scene  # noqa: E402 - the checkout's own packages
from dataengine.demo import write_photos  # noqa: E402
from dataengine.packing import png  # noqa: E402
from dataengine.run_folder import write_whole  # noqa: E402

SCENES = 24
MARK = ".made_by_loop"  # in a folder that may be emptied


def main() -> None:
    """Run the loop in a folder."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("convseg_loop"), help="emptied first (%(default)s)")
    arguments.add_argument("--steps", type=int, default=400, help="of training (%(default)s)")
    given = arguments.parse_args()
    out: Path = given.out
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        sys.exit(f"error: --out {out}: holds what this script did not write. Choose another folder")
    shutil.rmtree(out, ignore_errors=True)
    write_whole(out / MARK, b"")
    began = time.monotonic()
    write_photos(out / "photos")
    random = np.random.default_rng(0)
    for number in range(SCENES):
        write_whole(out / "photos" / f"scene_{number:02d}.png", png(draw_scene(random).rgb.repeat(3, 0).repeat(3, 1)))
    _run("dataengine.cli", "run", "--input", out / "photos", "--output_dir", out / "runs", "--preset", "offline")
    _run("dataengine.cli", "export", "--runs_root", out / "runs", "--out_dir", out / "export", "--include_negatives")
    _run("convseg.cli", "tiny", "--out", out / "tiny")
    _run(
        "train.py", "--data-dir", out / "export", "--checkpoint", out / "tiny/sam2",
        "--plm-model-name", out / "tiny/qwen", "--plm-image-side", 112, "--train_encoder", "--steps", given.steps,
        "--batch-size", 8, "--acc", 1, "--lr", "4e-4", "--er-k", 0, "--workers", 1, "--val-every", 0,
        "--log-every", 50, "--save-every", 200, "--out", out / "ckpts", "--name", "tiny",
    )  # fmt: skip
    model = ("--final_ckpt", out / "ckpts/tiny_final.torch", "--plm_ckpt", out / "ckpts/tiny_plm_final.torch")
    _run(
        "eval.py", "--input_json", out / "export/items.json", *model, "--workers", 1,
        "--out", out / "eval", "--save_preds", out / "eval/preds",
    )  # fmt: skip
    _run(
        "convseg.cli", "predict", "--image", out / "photos/coffee.png", "--prompt", "Segment the red region",
        *model, "--out_dir", out / "predictions",
    )  # fmt: skip
    print(f"\nThe loop took {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def _run(what: str, *arguments: object) -> None:
    """Run a command of ours as a user would, having printed it."""
    told = [str(argument) for argument in arguments]
    script = [str(ROOT / what)] if what.endswith(".py") else ["-m", what]
    name = f"python {what}" if what.endswith(".py") else what.removesuffix(".cli")
    print(f"\n$ {name} {shlex.join(told)}", flush=True)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}  # what is this small takes longer on more
    code = subprocess.run([sys.executable, *script, *told], env=env).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
