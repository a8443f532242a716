"""`python dataengine/tools/export_dataset.py …` is `dataengine export …`, from any folder, not installed."""

import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    others = [entry for entry in sys.path if Path(entry).resolve() != here]
    sys.path[:] = [str(here.parents[1]), *others]

    from dataengine.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
