"""`dataengine.prompts.region_dense_caption_meta_prompt` by its other name."""

from dataengine.prompts.region_dense_caption_meta_prompt import *  # noqa: F403 - all of them
