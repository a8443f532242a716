"""The flags of `convseg` and of train.py and eval.py. Only argparse is imported, so that `--help` is quick.

The published train.py spells its flags with dashes and eval.py with underscores; either spelling is taken for each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dataengine import __version__
from dataengine.flags import Parser, looks

DESCRIPTION = "The segmentation model that DataEngine's exports train and measure."
EXAMPLES = {
    "": "example:\n  convseg train --data-dir export --checkpoint sam2_hiera_small.pt",
    "train": "example:\n  python train.py --data-dir export --dataset-jsonl dataset.jsonl \\\n"
    "    --model-cfg sam2_hiera_s.yaml --checkpoint sam2_hiera_small.pt --device cuda",
    "eval": "example:\n  python eval.py --input_json export/items.json --final_ckpt ckpts/run_final.torch \\\n"
    "    --plm_ckpt ckpts/run_plm_final.torch --device cuda",
    "predict": 'example:\n  convseg predict --image cup.jpg --prompt "Segment the cup" \\\n'
    "    --final_ckpt ckpts/run_final.torch --plm_ckpt ckpts/run_plm_final.torch",
    "tiny": "example:\n  convseg tiny --out tiny",
    "scenes": "example:\n  convseg scenes --out scenes --count 200",
}
DEVICES = "auto (a GPU, else CPU), cuda, cuda:1, cpu"


class FlagParser(Parser):
    """A parser that takes a flag with dashes for one with underscores, and the other way round."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `ArgumentParser`."""
        return super().parse_known_args(None if args is None else [self._spelled(a) for a in args], namespace)

    def _spelled(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return argument
        for other in ("--" + name[2:].replace("_", "-"), "--" + name[2:].replace("-", "_")):
            if other in self._option_string_actions:
                return other + equals + value
        return argument


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = FlagParser("convseg", **looks(DESCRIPTION, EXAMPLES[""]))
    top.add_argument("--version", action="version", version=f"convseg {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, argument_default=argparse.SUPPRESS, **looks(text, EXAMPLES[name]))

    _train_flags(command("train", "Train on a dataset.jsonl."))
    _eval_flags(command("eval", "Score a trained model on an items.json or a Hugging Face dataset."))
    _predict_flags(command("predict", "Segment one image by prompts."))
    tiny = command("tiny", "Write tiny models with random weights, to try the commands without weights.")
    tiny.add_argument("--out", type=Path, required=True, help="gets the folders sam2 and qwen")
    scenes = command("scenes", "Draw scenes with exact masks, to try the commands without data.")
    scenes.add_argument("--out", type=Path, required=True, help="a new folder, in the form of an export")
    scenes.add_argument("--count", type=int, default=200, metavar="N", help="scenes (200)")
    scenes.add_argument("--seed", type=int, default=0, metavar="N", help="other numbers draw other scenes (0)")
    return top


def _train_flags(train: argparse.ArgumentParser) -> None:
    data = train.add_argument_group("data")
    data.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="an export; paths start from it")
    data.add_argument("--dataset-jsonl", metavar="FILE", help="in it (dataset.jsonl)")
    data.add_argument("--num-samples", type=int, metavar="N", help="only the first N")
    data.add_argument("--skip_bad", action="store_true", help="pass over samples that cannot be used")
    data.add_argument("--max-dim", type=int, metavar="N", help="long side of a photo, px (what SAM 2 sees: 1024)")
    data.add_argument("--er-k", type=int, metavar="N", help="masks are made thinner by a square of N px (5)")
    data.add_argument("--er-it", type=int, metavar="N", help="so often (1)")
    data.add_argument("--augment", action="store_true", help="change light and colour at random")
    data.add_argument("--workers", type=int, metavar="N", help="processes that read photos (4)")
    data.add_argument(
        "--cache_features",
        type=Path,
        metavar="DIR",
        help="keep the encoder's features of each photo there (8 MB in bfloat16): read, not computed, from then on",
    )
    _train_model_flags(train.add_argument_group("model"))
    _train_loop_flags(train.add_argument_group("training"))
    _train_out_flags(train.add_argument_group("results"))


def _train_model_flags(model: argparse._ArgumentGroup) -> None:
    model.add_argument("--model-cfg", metavar="NAME", help="SAM 2 config (sam2_hiera_s.yaml)")
    model.add_argument("--checkpoint", metavar="FILE", help="SAM 2: .pt file, hub id or folder (sam2_hiera_small.pt)")
    model.add_argument("--plm-model-name", metavar="MODEL", help="Qwen2.5-VL: hub id or folder (its 3B-Instruct)")
    model.add_argument("--plm-image-side", type=int, metavar="N", help="px of the picture it reads (256)")
    model.add_argument("--lora-r", type=int, metavar="N", help="rank of its LoRA (16)")
    model.add_argument("--lora-alpha", type=int, metavar="N", help="(32)")
    model.add_argument("--train_encoder", action="store_true", help="train SAM 2's image encoder too")
    model.add_argument("--device", metavar="NAME", help=DEVICES)
    model.add_argument("--precision", metavar="P", help="auto (bfloat16 on GPUs), bfloat16, float32")


def _train_loop_flags(loop: argparse._ArgumentGroup) -> None:
    loop.add_argument("--steps", type=int, metavar="N", help="batches (3000)")
    loop.add_argument("--batch-size", type=int, metavar="N", help="samples a step, on each device (4)")
    loop.add_argument("--acc", type=int, metavar="N", help="steps an update of the weights (4)")
    loop.add_argument("--lr", type=float, metavar="X", help="highest learning rate (1e-4)")
    loop.add_argument("--min-lr", type=float, metavar="X", help="lowest, at the end (1e-6)")
    loop.add_argument("--warmup-updates", type=int, metavar="N", help="updates on the way up (3 %% of them)")
    loop.add_argument("--wd", type=float, metavar="X", help="weight decay (1e-4)")
    loop.add_argument("--seed", type=int, metavar="N", help="(1337)")
    loop.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="STEP",
        help="go on from a saved step of --name in --out (the latest), to the same losses",
    )
    loop.add_argument("--resume-sam-path", type=Path, metavar="FILE", help="begin with the SAM 2 of a .torch file")
    loop.add_argument("--resume-plm-path", type=Path, metavar="FILE", help="begin with the adapter of one")
    loop.add_argument("--resume-lora-path", type=Path, metavar="DIR", help="begin with a LoRA")


def _train_out_flags(out: argparse._ArgumentGroup) -> None:
    out.add_argument("--out", type=Path, metavar="DIR", help="checkpoints, tb/, val/ (ckpts)")
    out.add_argument("--name", metavar="NAME", help="of the checkpoints (fine_tuned_sam2_batched)")
    out.add_argument("--log-every", type=int, metavar="N", help="steps (20)")
    out.add_argument("--save-every", type=int, metavar="N", help="steps (1000); 0: only at the end")
    out.add_argument("--keep", type=int, metavar="N", help="only the last N of them; 0: all (0)")
    out.add_argument(
        "--plm-save",
        choices=("all", "trained"),
        help="all (default): as published, with the language model's own weights; trained: only what was trained",
    )
    out.add_argument("--val-every", type=int, metavar="N", help="steps (200); 0: only at the end")
    out.add_argument("--val-count", type=int, metavar="N", help="samples of it (6)")
    out.add_argument("--val-dir", type=Path, metavar="DIR", help="its pictures (OUT/val)")


def _model_flags(model: argparse._ArgumentGroup) -> None:
    model.add_argument("--final_ckpt", required=True, metavar="FILE", help="NAME_final.torch of train.py")
    model.add_argument("--plm_ckpt", required=True, metavar="FILE", help="NAME_plm_final.torch")
    model.add_argument("--lora_ckpt", metavar="DIR", help="a LoRA, where it is not in --plm_ckpt")
    model.add_argument("--model_cfg", metavar="NAME", help="SAM 2 config (what --final_ckpt says)")
    model.add_argument("--base_ckpt", metavar="FILE", help="SAM 2 before training; fills what --final_ckpt lacks")
    model.add_argument("--plm_model_name", metavar="MODEL", help="Qwen2.5-VL (what --final_ckpt says)")
    model.add_argument("--device", metavar="NAME", help=DEVICES)
    model.add_argument("--precision", metavar="P", help="auto (bf16 on GPUs), fp32, bf16, fp16")
    model.add_argument(
        "--multimask",
        action="store_true",
        help="as the published eval.py: of the decoder's three masks the one it rates best, not the trained one",
    )


def _eval_flags(evaluate: argparse.ArgumentParser) -> None:
    data = evaluate.add_argument_group("data")
    data.add_argument("--input_json", type=Path, metavar="FILE", help="an items.json")
    data.add_argument("--hf_dataset", metavar="NAME", help="or a dataset with image, mask, prompt: hub id or folder")
    data.add_argument("--hf_config", metavar="NAME", help="its configuration")
    data.add_argument("--hf_splits", metavar="A,B", help="its splits (all)")
    data.add_argument("--hf_cache_dir", type=Path, metavar="DIR", help="where the hub's files are kept")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N samples, of each split")
    data.add_argument("--skip_bad", action="store_true", help="pass over samples that cannot be used")
    data.add_argument("--workers", type=int, metavar="N", help="processes that read photos (4)")
    _model_flags(evaluate.add_argument_group("model"))
    out = evaluate.add_argument_group("results")
    out.add_argument("--out", type=Path, metavar="DIR", help="results.json and report.html (convseg_eval)")
    out.add_argument("--save_preds", type=Path, metavar="DIR", help="each prediction, truth, panel and prompt")
    out.add_argument("--show", type=int, metavar="N", help="worst and best in report.html, each (24)")


def _predict_flags(predict: argparse.ArgumentParser) -> None:
    what = predict.add_argument_group("what")
    what.add_argument("--image", type=Path, required=True, metavar="FILE", help="a photo")
    what.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="may be given several times")
    what.add_argument("--out_dir", type=Path, metavar="DIR", help="a mask and an overlay a prompt (predictions)")
    _model_flags(predict.add_argument_group("model"))
