"""Every JSON shape DataEngine writes, as pydantic models; DATAENGINE.md's schema tables are generated from them.

Boxes are `xyxy` = [x0, y0, x1, y1] in pixels of the upright image. Paths inside a run folder are relative to it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CONCEPTS = ("entities", "spatial", "relations", "affordances", "physics")

CONCEPT_FAMILIES: dict[str, tuple[str, ...]] = {
    "entities": (
        "instances_and_agents", "stuff_surfaces_regions", "object_parts_and_functional_regions",
        "materials_and_optics", "articulated_and_states", "groups_and_piles", "anticipatory_entity_state",
        "unusual_entity",
    ),
    "spatial": (
        "topological", "egocentric_viewer", "allocentric_object", "metric_bins", "support_contact",
        "visibility_occlusion", "counting_ordering", "unusual_location",
    ),
    "relations": ("atomic_posture", "event_state", "semantic_role", "anticipation"),
    "affordances": (
        "context_dependent", "context_independent", "negative_affordance", "counterfactual_affordance",
        "state_dependent_and_agent_conditional", "anticipatory_affordance",
    ),
    "physics": (
        "support_stability", "containment_and_flow", "collision_obstruction_passability", "hazard",
        "counterfactuals", "unusual",
    ),
}  # fmt: skip

VIEW_SIDE = 768  # pixels of the long side of what a model sees, as published
MAX_WORDS = 10  # of a prompt
PROMPTS_A_CONCEPT = 3  # for one image; negatives likewise

Concept = Literal["entities", "spatial", "relations", "affordances", "physics"]
Choice = Literal["initial", "refined", "neither"]
Verdict = Literal["ACCEPT", "REJECT"]
ExportMode = Literal["train", "eval", "both"]
PathMode = Literal["relative", "absolute"]
ReviewMode = Literal["apply", "ignore", "only"]
Action = Literal["accept", "reject", "edit", "regions", "undo"]
Strategy = Literal["object_level_neighbor", "concept_level_neighbor"]
Xyxy = tuple[float, float, float, float]
InclusiveXyxy = tuple[int, int, int, int]


class Record(BaseModel):
    """A JSON object with exactly the named fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# What the stages hand on, as kept in journal.jsonl.


class Rle(Record):
    """A mask in COCO's compressed run-length encoding."""

    size: Annotated[tuple[int, int], Field(description="[height, width] in pixels")]
    counts: Annotated[str, Field(description="COCO compressed run lengths")]


class DescribedRegion(Record):
    """One region named by the annotator."""

    label: str
    boxes: Annotated[list[Xyxy], Field(description="xyxy boxes that came with the label; may be empty")]


class Detection(Record):
    """One instance of a label that a grounder found."""

    box: Annotated[Xyxy, Field(description="xyxy in pixels of the photo")]
    score: Annotated[float | None, Field(description="0..1; null where the grounder gives none")] = None
    mask: Annotated[Rle | None, Field(description="its mask at any size, where the grounder cuts it as well")] = None


class Instance(Record):
    """One box of a region and what was cut from it."""

    box: Annotated[Xyxy, Field(description="the xyxy box that was segmented")]
    initial: Annotated[Rle, Field(description="the mask for the box, as first cut")]
    refined: Annotated[Rle | None, Field(description="the pool mask chosen for it, if any")]
    cleaned_pixels: Annotated[list[int], Field(description="pixels that cleaning changed in each of the two")]


class RegionCut(Record):
    """One label with the instances cut for it, in the order of its boxes."""

    label: str
    instances: list[Instance]


class RegionVerdict(Record):
    """The annotator's judgement of one region's masks."""

    choice: Annotated[Choice, Field(description="the mask to keep")]
    description: Annotated[str, Field(description="what the kept mask shows")]
    reason: str


class Prompt(Record):
    """One prompt for regions of one image."""

    prompt: Annotated[str, Field(description="at most 10 words, starting with a verb such as Segment")]
    concept_family: Annotated[str, Field(description="a family of its concept")]
    candidates: Annotated[list[int], Field(description="indices of the regions the prompt chooses among")]
    satisfying: Annotated[list[int], Field(description="indices it means; a strict subset of candidates")]


class Alignment(Record):
    """The annotator's judgement of one prompt against its masks."""

    accept: bool
    unmasked_match: Annotated[bool, Field(description="something outside the masks fits as well")]
    reason: str


class Negative(Record):
    """One prompt that sounds right for the image and matches no pixel of it."""

    prompt: str
    strategy: Annotated[Strategy, Field(description="an absent thing, or a present one with a false attribute")]
    concept_family: str
    target_decoy: Annotated[str, Field(description="what the prompt seems to ask for")]


class Usage(Record):
    """What paid calls cost."""

    input_tokens: int = 0
    output_tokens: Annotated[int, Field(description="thinking tokens included")] = 0
    usd: Annotated[float | None, Field(description="null where a price is unknown", allow_inf_nan=False)] = 0.0
    calls: Annotated[int, Field(description="answers paid for")] = 0
    reasked: Annotated[int, Field(description="of these, asked again since an answer broke its schema")] = 0

    def __add__(self, other: Usage) -> Usage:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            usd=usd,
            calls=self.calls + other.calls,
            reasked=self.reasked + other.reasked,
        )


# Files of a run folder.


class AcceptedRegion(Record):
    """An entry of `accepted_regions/accepted.json`."""

    index: Annotated[int, Field(description="position in the file; what prompts refer to")]
    label: Annotated[str, Field(description="the label the region was found by")]
    path: Annotated[str, Field(description="overlay PNG, at most 768 px")]
    bbox: Annotated[InclusiveXyxy, Field(description="[x0, y0, x1, y1], inclusive pixel indices")]
    mask_path: Annotated[str, Field(description="mask PNG, 0 or 255, at the size of original_image.png")]
    mask_npz_path: Annotated[str, Field(description="the same mask as NPZ: key `mask`, uint8, 0 or 1")]
    description: Annotated[str, Field(description="what the annotator saw in the kept mask")]
    choice: Annotated[Choice, Field(description="`initial` or `refined`: which mask was kept")]
    instances: Annotated[list[Rle], Field(description="one mask per box of the label; `mask_path` is their union")]
    cleaned_pixels: Annotated[int, Field(description="pixels in small holes filled and small islands dropped")]


class RegionResult(Record):
    """An entry of `results`: every described region, accepted or not."""

    index: Annotated[int, Field(description="position in the description")]
    label: str
    verify_initial: Annotated[bool, Field(description="whether a mask of the region was accepted")]
    desc_init: Annotated[str | None, Field(description="description, where the initial mask was kept")]
    desc_ref: Annotated[str | None, Field(description="description, where the refined mask was kept")]
    output: Annotated[Literal["initial", "refined"] | None, Field(description="the mask kept; null where none")]
    reason: Annotated[str, Field(description="why it was accepted or rejected")]


class StepTiming(Record):
    """An entry of `timing`."""

    step: Annotated[str, Field(description="the stage")]
    total_seconds: Annotated[float, Field(description="summed over steps that may have run side by side")]
    count: Annotated[int, Field(description="steps of the stage")]
    avg_seconds: float


class PromptVerification(Record):
    """An entry of `prompt_verifications`."""

    index: Annotated[int, Field(description="position among the concept's prompts")]
    prompt: str
    satisfying: Annotated[list[int], Field(description="indices into accepted.json")]
    verdict: Verdict
    reason: Annotated[str, Field(description="the annotator's, or `rule NAME: …` where code refused it")]
    src_path: Annotated[str, Field(description="the picture that was judged")]
    classified_path: Annotated[str, Field(description="where it is kept: under ACCEPTED or REJECTED")]


class Summary(Record):
    """`<concept>/summary.json`."""

    image_path: Annotated[str, Field(description="absolute path of the source image")]
    dense_caption: Annotated[str, Field(description="`[index: label]`, a line for each described region")]
    results: Annotated[list[RegionResult], Field(description="every described region")]
    accepted_count: Annotated[int, Field(description="regions in accepted.json")]
    accepted_dir: Annotated[str, Field(description="the folder of accepted.json")]
    final_overlay_path: Annotated[str, Field(description="the picture of all accepted regions, numbered")]
    accepted_dense_caption: Annotated[str, Field(description="`index: description`, a line for each accepted region")]
    conversational_prompts_path: Annotated[str, Field(description="the prompts alone")]
    conversational_prompts: Annotated[list[Prompt] | None, Field(description="null where no region was accepted")]
    generated_prompts_viz_dir: Annotated[str, Field(description="the pictures of the prompts")]
    timing: Annotated[list[StepTiming], Field(description="seconds by step of this image, as first computed")]
    gemini_usage: Annotated[Usage, Field(description="cost of all calls for this image up to this concept")]
    prompt_verifications: Annotated[list[PromptVerification], Field(description="every prompt with its verdict")]


class NegativeVerification(Negative):
    """An entry of `negatives/<concept>.json`."""

    verdict: Verdict
    reason: str


class Source(Record):
    """The image a run folder was made from."""

    path: Annotated[str, Field(description="absolute path")]
    sha256: Annotated[str, Field(description="of the file's bytes")]
    bytes: int
    mtime_ns: Annotated[int, Field(description="modification time; only spares hashing an unchanged file")]
    width: Annotated[int, Field(description="pixels, upright")]
    height: Annotated[int, Field(description="pixels, upright")]


class PartRecord(Record):
    """A part that made a run folder."""

    name: str
    version: str
    detail: Annotated[dict[str, str], Field(description="libraries and models it used")]


class RunRecord(Record):
    """`run.json`: how a run folder was made."""

    dataengine: Annotated[str, Field(description="version of DataEngine")]
    complete: Annotated[bool, Field(description="true once every requested file is written")]
    fingerprint: Annotated[str, Field(description="digest of all that determines the results")]
    source: Annotated[Source, Field(description="the image")]
    concepts: Annotated[list[str], Field(description="those made from these inputs, by this run or earlier ones")]
    parts: Annotated[dict[str, PartRecord], Field(description="the annotator, grounder and segmenter")]
    prompt_digests: Annotated[dict[str, str], Field(description="SHA-256 of each prompt template used")]
    settings: Annotated[dict[str, object], Field(description="all settings of the command")]
    basis: Annotated[
        dict[str, dict[str, object]],
        Field(description="by stage, what its answers rest on beside the image and the stages before it"),
    ] = {}
    usage: Annotated[
        dict[str, Usage], Field(description="by stage, all that was paid for this image; empty while it is unfinished")
    ] = {}
    note: Annotated[str, Field(description="what a reader should know, such as why no region was accepted")]


class RunHead(BaseModel):
    """What of `run.json` says whether an image is done; of many, reading the rest would take most of the time."""

    complete: bool
    fingerprint: str
    source: Source


class Failure(Record):
    """A line of `<output_dir>/failures.jsonl`."""

    image: Annotated[str, Field(description="absolute path")]
    stage: Annotated[str, Field(description="where it failed: read, describe, segment, …")]
    reason: Annotated[str, Field(description="a short stable name to count by")]
    message: Annotated[str, Field(description="what, where, and what to do next, on one line")]


class Judged(Record):
    """A prompt as a person has left it."""

    verdict: Annotated[Verdict | None, Field(description="null where the person has not judged it")]
    prompt: str
    satisfying: Annotated[list[int], Field(description="indices into accepted.json; empty for a negative")]


class Decision(Record):
    """A line of `reviews.jsonl`: what a person decided of one prompt."""

    id: Annotated[str, Field(description="of this decision, chosen by the page: sent twice, it is written once")]
    at: Annotated[str, Field(description="when, UTC, ISO 8601")]
    reviewer: Annotated[str, Field(description="who")]
    blind: Annotated[bool, Field(description="whether the engine's verdict was hidden")]
    concept: Concept
    negative: Annotated[bool, Field(description="whether it is an entry of `negatives/<concept>.json`")]
    index: Annotated[int, Field(description="of the prompt in its concept")]
    basis: Annotated[str, Field(description="digest of the engine's prompt and regions; where they change it lapses")]
    engine: Annotated[Verdict, Field(description="the engine's verdict")]
    action: Action
    undoes: Annotated[str | None, Field(description="the decision taken back, where the action is `undo`")]
    before: Annotated[Judged, Field(description="as this reviewer found it")]
    after: Judged


# Figures of run folders and of an export.


class Share(Record):
    """How many were accepted, and how many rejected."""

    accepted: int = 0
    rejected: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(accepted=self.accepted + other.accepted, rejected=self.rejected + other.rejected)


class Spread(Record):
    """How a quantity is distributed; the numbers are null where there is nothing to count."""

    count: int
    least: float | None
    median: float | None
    mean: float | None
    greatest: float | None
    edges: Annotated[list[float], Field(description="of the bins, lowest first; the last bin is open above")]
    counts: Annotated[list[int], Field(description="in each bin from an edge to below the next")]


class StageFigures(Record):
    """Work and cost of a stage, over all images."""

    steps: Annotated[int, Field(description="questions or computations, each of which may have taken several calls")]
    seconds: Annotated[float, Field(description="summed over steps that may have run side by side")]
    usage: Usage


class Concern(Record):
    """Something that a user should look at."""

    kind: Annotated[str, Field(description="a short stable name")]
    count: int
    told: Annotated[str, Field(description="what it is, in words")]
    examples: list[str]


class Rate(Record):
    """A share with its Wilson interval; null where nothing was counted."""

    hits: int
    of: int
    value: float | None
    low: Annotated[float | None, Field(description="of the 95 % interval")]
    high: float | None


class ConceptAgreement(Record):
    """What people's verdicts say of the engine's, for a concept. A pair a person had to correct counts as refused."""

    reviewed: Annotated[int, Field(description="prompts that a person judged")]
    corrected: Annotated[int, Field(description="accepted by a person with another text or other regions")]
    precision: Annotated[Rate, Field(description="of those the engine accepted, the share a person accepts")]
    recall: Annotated[Rate, Field(description="of those a person accepts, the share the engine accepted")]


class ReviewerPair(Record):
    """Two reviewers' verdicts on the prompts that both have judged."""

    first: str
    second: str
    prompts: int
    agreed: Annotated[float, Field(description="share of equal verdicts")]
    kappa: Annotated[float | None, Field(description="Cohen's; null where chance alone explains all")]


class Agreement(Record):
    """What people's verdicts say of the engine's."""

    concepts: Annotated[dict[str, ConceptAgreement], Field(description="by concept, and `negatives`")]
    all: Annotated[ConceptAgreement, Field(description="all prompts that are no negatives")]
    reviewers: Annotated[dict[str, int], Field(description="prompts that each has judged, negatives too")]
    pairs: list[ReviewerPair]
    reviewed_share: Annotated[
        dict[str, float | None],
        Field(
            description="of the engine's accepted and rejected prompts, no negatives, the share judged; null of none"
        ),
    ]
    usd_per_pair: Annotated[
        float | None, Field(description="cost of all over accepted prompts times precision; null where unknown")
    ]


class Figures(Record):
    """What run folders or an export hold, in numbers."""

    images: int
    described_regions: Annotated[int, Field(description="0 for an export")]
    accepted_regions: Annotated[int, Field(description="0 for an export")]
    prompts: Annotated[dict[str, Share], Field(description="by concept; negatives apart")]
    families: Annotated[dict[str, dict[str, Share]], Field(description="by concept and concept family")]
    negatives: Annotated[dict[str, Share], Field(description="by concept")]
    rejected: Annotated[dict[str, int], Field(description="rejected prompts and negatives, by why")]
    mask_area: Annotated[Spread, Field(description="share of the photo inside the mask, of accepted prompts")]
    prompts_per_image: Annotated[Spread, Field(description="accepted")]
    prompt_words: Annotated[Spread, Field(description="words of accepted prompts, negatives too")]
    stages: Annotated[dict[str, StageFigures], Field(description="empty for an export")]
    unreadable: Annotated[dict[str, int], Field(description="entries and files that cannot be read, by reason")]
    concerns: list[Concern]
    agreement: Annotated[Agreement | None, Field(description="null where nobody has judged a prompt")]

    @property
    def cost(self) -> Usage:
        """Of all stages."""
        return sum((stage.usage for stage in self.stages.values()), Usage())


# Files of an export.


class TrainRow(Record):
    """A line of `dataset.jsonl`."""

    image: str
    mask_merged: str
    prompt: str


class EvalItem(Record):
    """An entry of `items` in `items.json`; `negative` stands there only where it is true."""

    id: str
    image: str
    mask: str
    prompt: str
    concept: str
    negative: Annotated[Literal[True] | None, Field(description="an absent thing: the mask is all black")] = None


class EvalItems(Record):
    """`items.json`."""

    dataset: str
    count: int
    items: list[EvalItem]


class ExportCounts(Record):
    """`counts` of the manifest."""

    train_rows: int
    eval_items: int
    copied_images: int
    written_masks: int


class ExportedRun(Record):
    """An entry of `per_run` of the manifest."""

    run_dir: str
    exported_samples: int
    skipped_in_run: int


class ExportManifest(Record):
    """`export_manifest.json`."""

    complete: Annotated[bool, Field(description="false while an export is under way or after it was cut off")]
    runs_root: str
    out_dir: str
    mode: ExportMode
    path_mode: PathMode
    include_negatives: bool
    reviews: Annotated[ReviewMode, Field(description="whether people's decisions were applied")] = "apply"
    concepts: list[str]
    discovered_run_dirs: list[str]
    counts: ExportCounts
    skipped_reason_counts: dict[str, int]
    review_counts: Annotated[dict[str, int], Field(description="prompts by what a person's word did to them")] = {}
    figures: Annotated[Figures | None, Field(description="null while an export is under way")] = None
    per_run: list[ExportedRun]
    written_files: Annotated[list[str], Field(description="relative to out_dir")]
