"""The templates by their other names: `dataengine.meta_prompts`, or `meta_prompts` from inside the package's folder."""

import sys
from pathlib import Path

if __name__ == "meta_prompts":  # by the bare name: the package must be found beside this folder, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dataengine.prompts.concept_specific_meta_prompts import *  # noqa: F403 - all of them
from dataengine.prompts.concept_specific_meta_prompts_for_negatives import *  # noqa: F403
from dataengine.prompts.region_dense_caption_meta_prompt import *  # noqa: F403
