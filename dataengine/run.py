"""`python dataengine/run.py …` is `dataengine run …`, from a checkout and from any working directory."""

import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    # Python puts this folder first on the path; `dataengine` must be found beside it, and nothing in it by bare name.
    sys.path[:] = [str(here.parent), *(p for p in sys.path if Path(p or ".").resolve() != here)]

    from dataengine.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
