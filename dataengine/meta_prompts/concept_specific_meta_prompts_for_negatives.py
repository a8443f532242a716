"""`dataengine.prompts.concept_specific_meta_prompts_for_negatives` by its other name."""

from dataengine.prompts.concept_specific_meta_prompts_for_negatives import *  # noqa: F403 - all of them
