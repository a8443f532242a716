"""`dataengine doctor`: what works on this machine, what does not, and how to mend it.

Importing it takes no more than pydantic: it must still speak where another library is missing or broken.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.metadata
import platform
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine import __version__
from dataengine.errors import DataEngineError, UsageError, one_line
from dataengine.keys import KEYS, key, key_name, without_keys
from dataengine.parts import REGISTRY, Parts, build, lacks
from dataengine.records import DescribedRegion, Usage, Xyxy
from dataengine.settings import PRESETS, Settings, load_settings

if TYPE_CHECKING:
    from dataengine.images import Photo

RUN = "dataengine run --input PHOTOS --output_dir runs"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: False where it keeps the chosen parts from working; None where something is amiss that does not.
        said: what was found.
        remedy: what to do about it.
    """

    name: str
    ok: bool | None
    said: str
    remedy: str = ""


def doctor(settings: Settings, given: str = "", *, calls: bool = True) -> int:
    """Look at this machine and print what is found; the exit code.

    Args:
        settings: those that a run would have.
        given: the flags they come from, as `as_typed` gives them, for the command that is named last.
        calls: ask each chosen part one small question, which may cost money or load a model.

    Returns:
        0 where nothing keeps the chosen parts from working, else 1.
    """
    report = Report()
    report.add("Libraries", libraries(settings))
    report.add("Machine", machine(settings))
    report.add("Parts", parts(settings))
    report.add("Keys", keys(settings))
    if calls:
        report.add("One small question to each chosen part", answers(settings))
    faults = sum(finding.ok is False for finding in report.findings)
    report.say("\n" + next_step(faults, given))
    return 1 if faults else 0


class Report:
    """Prints findings as they come, and no key in any.

    Attributes:
        findings: all so far.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.findings: list[Finding] = []
        self._console = Console(highlight=False)

    def say(self, text: str) -> None:
        """Print a text as it is."""
        print(without_keys(text), flush=True)

    def add(self, title: str, findings: Iterable[Finding]) -> None:
        """Print and remember the findings of one kind."""
        self.say(f"\n{title}" if self.findings else title)
        for finding in findings:
            self.findings.append(finding)
            mark, style = {True: ("ok", "green"), None: ("-", "yellow"), False: ("FAULT", "bold red")}[finding.ok]
            name, said, remedy = (without_keys(one_line(t)) for t in (finding.name, finding.said, finding.remedy))
            if self._console.is_terminal:
                self._row(mark, style, name, said, remedy)
            else:  # whole lines, for logs and `grep`
                self.say(f"  {mark:5}  {name:23}  {said}{f' -> {remedy}' if remedy else ''}")

    def _row(self, mark: str, style: str, name: str, said: str, remedy: str) -> None:
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(min_width=5)
        row.add_column(min_width=23)
        row.add_column(overflow="fold")
        row.add_row(Text(mark, style), Text(name), Text(said))
        if remedy:
            row.add_row("", "", Text(f"→ {remedy}", "cyan"))
        self._console.print(Padding(row, (0, 0, 0, 2)))


def next_step(faults: int, given: str) -> str:
    """The last line: what to do now."""
    if not faults:
        return f"Next: {RUN}{given}"
    mend = f"Next: mend what is marked FAULT, then again: dataengine doctor{given}"
    return f"{mend}\nThis works here as it is: {RUN} --preset offline" if _offline_works() else mend


def _offline_works() -> bool:
    offline = load_settings({"preset": "offline"})
    try:
        build(offline)
    except DataEngineError:
        return False
    return all(finding.ok is not False for finding in libraries(offline))


def as_typed(flags: Mapping[str, object], file: Path | None) -> str:
    """Flags as they can be typed after a command, with a space before each."""
    words = [f"--settings {shlex.quote(str(file))}"] if file else []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words.append(f"--{name} {shlex.quote(str(value))}")
    return "".join(f" {word}" for word in words)


# Libraries


@dataclass(frozen=True)
class Library:
    """A library that the project needs.

    Attributes:
        name: on PyPI.
        module: what is imported of it.
        least: the oldest version that will do.
        used_by: names of parts and providers; empty where nothing works without it.
        brought_by: what is installed to get it; itself where empty.
    """

    name: str
    module: str
    least: str = ""
    used_by: tuple[str, ...] = ()
    brought_by: str = ""

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return self.brought_by or (f"{self.name}>={self.least}" if self.least else self.name)


_LOCAL_MODELS = ("moondream-hf", "grounding-dino", "owlv2", "sam2", "sam3")
_AI = "pydantic-ai-slim[{}]>=2.68"

LIBRARIES = (
    Library("jinja2", "jinja2", "3.1"),
    Library("numpy", "numpy", "1.26"),
    Library("opencv-python-headless", "cv2", "4.9"),
    Library("pillow", "PIL", "10.3"),
    Library("pycocotools", "pycocotools.mask", "2.0.8"),
    Library("pydantic", "pydantic", "2.7"),
    Library("rich", "rich", "13.7"),
    Library("rich-argparse", "rich_argparse", "1.5"),
    Library("scikit-image", "skimage", "0.24"),
    Library("scipy", "scipy.stats", "1.11"),
    Library("fastapi", "fastapi", "0.115", ("review",)),
    Library("uvicorn", "uvicorn", "0.30", ("review",)),
    Library("tenacity", "tenacity", "9", ("vlm", "moondream")),
    Library("httpx2", "httpx2", "2", ("vlm", "moondream")),
    Library("pydantic-ai-slim", "pydantic_ai", "2.68", ("vlm",), _AI.format("google,openai,anthropic")),
    Library("google-genai", "google.genai", "", ("google",), _AI.format("google")),
    Library("openai", "openai", "", ("openai",), _AI.format("openai")),
    Library("anthropic", "anthropic", "", ("anthropic",), _AI.format("anthropic")),
    Library("torch", "torch", "2.6", _LOCAL_MODELS),
    Library("torchvision", "torchvision", "0.21", _LOCAL_MODELS),
    Library("transformers", "transformers", "5.0", _LOCAL_MODELS),
)
# They share the folder `cv2`: of two, one has overwritten the other, and removing one breaks both.
OPENCV_WHEELS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


def libraries(settings: Settings) -> Iterator[Finding]:
    """Versions, each library imported: what is installed does not always start."""
    yield Finding("dataengine", True, f"{__version__}, from {Path(__file__).parent}")
    yield Finding("Python", True, f"{platform.python_version()}, {sys.executable}")
    wheels = [wheel for wheel in OPENCV_WHEELS if _version(wheel)]
    for library in LIBRARIES:
        needed = not library.used_by or not _used(settings).isdisjoint(library.used_by)
        if library.module == "cv2" and wheels not in ([], OPENCV_WHEELS[:1]):
            yield _other_opencv(library, wheels)
        else:
            yield _library(library, needed)


def _used(settings: Settings) -> set[str]:
    """Names of the chosen parts, and of the provider where one is asked."""
    chosen = {str(getattr(settings, kind)) for kind in REGISTRY}
    return chosen | {settings.vlm.partition(":")[0]} if settings.annotator == "vlm" else chosen


def _library(library: Library, needed: bool) -> Finding:
    amiss = False if needed else None
    install = f"pip install '{library.requirement}'"
    try:
        module = _imported(library.module)
    except ModuleNotFoundError as error:
        if error.name and f"{library.module}.".startswith(f"{error.name}."):
            return Finding(library.name, amiss, "missing", install)
        return _broken(library, amiss, error)
    except Exception as error:  # a library may raise anything when it is imported
        return _broken(library, amiss, error)
    version = _version(library.name) or str(getattr(module, "__version__", "of unknown version"))
    if _numbers(version) and _numbers(version) < _numbers(library.least):
        return Finding(library.name, amiss, f"{version} is too old", install)
    return Finding(library.name, True, version)


def _broken(library: Library, amiss: bool | None, error: Exception) -> Finding:
    said = f"{_version(library.name)} is installed but does not start: {_first_line(error)}"
    return Finding(library.name, amiss, said, f"pip install --force-reinstall '{library.requirement}'")


def _other_opencv(library: Library, wheels: list[str]) -> Finding:
    """What to say of a wheel of OpenCV's that is not the headless one, or of several."""
    remedy = f"pip uninstall -y {' '.join(wheels)} && pip install '{library.requirement}'"
    if len(wheels) > 1:
        said = f"{' and '.join(wheels)} are installed side by side, in one folder: one has overwritten the other"
        return Finding("opencv", False, said, remedy)
    found = _library(Library(wheels[0], library.module, library.least), needed=True)
    return found if found.ok else Finding(found.name, found.ok, found.said, remedy)


def _imported(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> list[int]:
    """2, 6 of `2.6.0+cu124`: zeros at the end count for nothing."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


# The machine

GIB = 2**30
LEAST_DISK = 1 * GIB


def machine(settings: Settings) -> Iterator[Finding]:
    """GPUs as torch sees them, with their memory; free space on disk."""
    try:
        torch = _imported("torch")
    except Exception:  # said in full among the libraries
        yield Finding("GPU", None, "cannot be seen without torch", "pip install 'torch>=2.6'")
    else:
        yield from _gpus(torch)
        yield from _device_setting(settings)
    yield _disk()


def _gpus(torch: Any) -> Iterator[Finding]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        why = "".join(f" ({_first_line(warning.message)})" for warning in told[:1])
        remedy = "Where there is one, see nvidia-smi" + (
            "" if torch.version.cuda or torch.version.hip else "; this torch is built without CUDA: see pytorch.org"
        )
        yield Finding("GPU", None, f"no GPU that torch sees{why}: models run on the CPU, slowly", remedy)
    for i in range(count):
        yield _gpu(torch, i)


def _gpu(torch: Any, index: int) -> Finding:
    name = f"GPU cuda:{index}"
    try:
        model = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)
        # the condition of torch.cuda.is_bf16_supported, which looks at the current device only
        half = bool(torch.version.hip) or torch.cuda.get_device_capability(index)[0] >= 8
    except RuntimeError as error:
        return Finding(name, None, f"does not answer: {_first_line(error)}", "See nvidia-smi; --device names others")
    kinds = "bfloat16" if half else "no bfloat16 in hardware: use --precision float32"
    return Finding(name, True, f"{model}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {kinds}")


def _device_setting(settings: Settings) -> Iterator[Finding]:
    from dataengine.devices import device_names

    if _used(settings).isdisjoint(_LOCAL_MODELS):
        return
    try:
        names = device_names(settings.device)
    except UsageError as error:
        yield Finding("device", False, error.message, error.hint)
    else:
        yield Finding("device", True, f"--device {settings.device} is {', '.join(names)} here")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    full = free < LEAST_DISK
    said = f"{free / GIB:.1f} GiB free in the working directory"
    return Finding("disk", None if full else True, said, "Free some, or write elsewhere: --output_dir" if full else "")


# Parts and keys


def parts(settings: Settings) -> Iterator[Finding]:
    """Every registered part, and those chosen that are not: ready, or what it lacks and how to get it."""
    for kind, registered in REGISTRY.items():
        chosen = str(getattr(settings, kind))
        for name in dict.fromkeys((*registered, chosen)):
            lack = lacks(kind, name, settings)
            said = lack or _ready(kind, name)
            amiss = False if name == chosen else None
            yield Finding(f"{kind} {name}", amiss if lack else True, f"chosen: {said}" if name == chosen else said)


def _ready(kind: str, name: str) -> str:
    if name not in _LOCAL_MODELS:
        return "ready"
    flag = "--checkpoint" if kind == "segmenter" else "--grounder_model"
    where = flag if name == "sam2" else f"{flag}, else from the hub"
    return f"ready to load its weights from {where}"


def keys(settings: Settings) -> Iterator[Finding]:
    """Which keys are set, and in which variable; nothing of their values."""
    asked = _used(settings)
    needs = " ".join(lacks(kind, str(getattr(settings, kind)), settings) for kind in REGISTRY)
    for name, variables in KEYS.items():
        held = key_name(name)
        if held is None:
            amiss = False if f"set {variables[0]}" in needs else None
            yield Finding(name, amiss, "not set", f"export {variables[0]}=…")
            continue
        try:
            key(name)
        except UsageError as error:
            yield Finding(name, False if name in asked else None, error.message, error.hint)
        else:
            yield Finding(name, True, f"set in {held}")


# Questions

PATIENCE = 30.0  # seconds for an answer over the network, where --vlm_timeout is not given
LEAST_IOU = 0.5  # with the disc that is drawn
WIDTH, HEIGHT = 320, 240
WHITE = 255
CENTRE, RADIUS = (230, 70), 45  # far from where mistaken axes or scales would put it
DISC: Xyxy = (185, 25, 275, 115)


@dataclass(frozen=True)
class Heard:
    """What a part answered: in words, how well it fits what was drawn (where that can be told), and the cost."""

    said: str
    iou: float | None
    usage: Usage


def answers(settings: Settings) -> Iterator[Finding]:
    """What each chosen part that lacks nothing answers to one real question about a red disc.

    Calls over the network are made once, and waited for 30 s or `--vlm_timeout`.
    """
    patience = settings.vlm_timeout if "vlm_timeout" in settings.model_fields_set else PATIENCE
    brief = settings.model_copy(update={"vlm_timeout": patience, "retry_seconds": 0.0})
    for kind in REGISTRY:
        if not lacks(kind, str(getattr(settings, kind)), settings):
            yield _answer(kind, brief)


def _answer(kind: str, settings: Settings) -> Finding:
    name = f"{kind} {getattr(settings, kind)}"
    try:
        return _asked(kind, name, settings)
    except DataEngineError as error:
        return Finding(name, False, f"{error.message}{_cost(error.usage or Usage())}", error.hint)
    except Exception as error:  # other people's code
        remedy = "Check its settings; where they are right, report this"
        return Finding(name, False, f"fails: {_first_line(error)}", remedy)


def _asked(kind: str, name: str, settings: Settings) -> Finding:
    start = time.perf_counter()
    # the others are the offline ones, so that one part's failure hides no other's
    built = build(settings.model_copy(update={**PRESETS["offline"], kind: getattr(settings, kind)}))
    ready = time.perf_counter()
    heard = asyncio.run(_heard(kind, built, settings))
    said = f"built in {ready - start:.1f} s"
    if heard is None:
        return Finding(name, True, f"{said}; not asked: it looks for nothing by itself")
    said += f", {heard.said} in {time.perf_counter() - ready:.1f} s{_cost(heard.usage)}"
    if heard.iou is None:
        return Finding(name, True, said)
    said += f", IoU {heard.iou:.2f} with the disc that was drawn"
    if heard.iou >= LEAST_IOU:
        return Finding(name, True, said)
    return Finding(name, None, said, "Look at the overlays of a few photos before you trust it")


async def _heard(kind: str, built: Parts, settings: Settings) -> Heard | None:
    """The answer; None from a grounder that only hands on boxes."""
    async with built:
        photo = _drawn(settings)
        if kind == "annotator":
            return await _described(built, photo, with_boxes=settings.grounder == "annotator")
        return await (_grounded if kind == "grounder" else _cut)(built, photo)


async def _described(built: Parts, photo: Photo, *, with_boxes: bool) -> Heard:
    answer = await built.annotator.describe(photo, 1, with_boxes)
    if not answer.value:
        return Heard("named nothing", 0.0, answer.usage)
    region = answer.value[0]
    return Heard(f"named {region.label[:60]!r}", _best(region.boxes) if with_boxes else None, answer.usage)


async def _grounded(built: Parts, photo: Photo) -> Heard | None:
    if not built.grounder.detects:
        return None
    answer = await built.grounder.ground(photo, DescribedRegion(label="red disc", boxes=[]))
    boxes = [detection.box for detection in answer.value]
    return Heard(f"found {len(boxes)} {'box' if len(boxes) == 1 else 'boxes'}", _best(boxes), answer.usage)


async def _cut(built: Parts, photo: Photo) -> Heard:
    answer = await built.segmenter.segment(photo, [DISC])
    if len(answer.value) != 1:
        raise DataEngineError(f"gave {len(answer.value)} masks for one box", hint="Report this")
    mask = answer.value[0].resized(photo.height, photo.width)
    return Heard("cut a mask", mask.iou(type(mask).from_array((photo.rgb != WHITE).any(axis=2))), answer.usage)


def _drawn(settings: Settings) -> Photo:
    """A red disc on white, as a photo."""
    import cv2
    import numpy as np

    from dataengine.images import Photo

    rgb = np.full((HEIGHT, WIDTH, 3), WHITE, np.uint8)
    cv2.circle(rgb, CENTRE, RADIUS, (210, 30, 30), thickness=-1)
    return Photo(Path("a drawn disc"), rgb, hashlib.sha256(rgb.tobytes()).hexdigest(), settings.vlm_side)


def _best(boxes: Iterable[Xyxy]) -> float:
    """The highest IoU with the disc's box; 0 where there is no box."""
    return max((_iou(box, DISC) for box in boxes), default=0.0)


def _iou(a: Xyxy, b: Xyxy) -> float:
    inside = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return inside / (_area(a) + _area(b) - inside)


def _area(box: Xyxy) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _cost(usage: Usage) -> str:
    """What an answer cost, in brackets; empty where nothing was paid for."""
    if not usage.calls:
        return ""
    tokens = f", {usage.input_tokens:,} tokens in, {usage.output_tokens:,} out" if usage.input_tokens else ""
    price = "cost unknown" if usage.usd is None else f"${usage.usd:.4f}"
    return f" ({usage.calls} {'call' if usage.calls == 1 else 'calls'} paid{tokens}, {price})"


def _first_line(error: BaseException | str) -> str:
    """An error as its type and a short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return type(error).__name__ + (f": {lines[0][:200]}" if lines else "")
