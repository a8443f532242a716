"""`python eval.py …` is `convseg eval …`: score a trained model."""

import sys

from convseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
