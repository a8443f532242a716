"""`dataengine.prompts.concept_specific_meta_prompts` by its other name."""

from dataengine.prompts.concept_specific_meta_prompts import *  # noqa: F403 - all of them
