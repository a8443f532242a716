"""`python train.py …` is `convseg train …`: learn from a dataset.jsonl."""

import sys

from convseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
