"""What `dataengine doctor` says must be true, and must hold no key."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataengine import doctor
from dataengine.cli import NO_SETTINGS, main
from dataengine.doctor import DISC, HEIGHT, LIBRARIES, WIDTH, Finding
from dataengine.errors import UsageError
from dataengine.flags import parser
from dataengine.journal import Answer
from dataengine.keys import KEYS, SECRETS
from dataengine.parts import REGISTRY, build, lacks
from dataengine.records import DescribedRegion, Detection
from dataengine.settings import PRESETS, Settings, load_settings
from tests.standins import moondream_server
from tests.standins.moondream_server import MoondreamServer
from tests.standins.vlm_server import KEY, Asked, Reply, VlmServer

ROOT = Path(__file__).resolve().parent.parent
WRONG = "sk-Wr0ng/9f8e7d6c5b4a3"
MODELS = {"google": "google:gemini-flash-latest", "openai": "openai:gpt-4o", "anthropic": "anthropic:claude-haiku-4-5"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRETS, "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def settings(**flags: Any) -> Settings:
    return load_settings({"preset": "offline", **flags})


def named(findings: Sequence[Finding] | Any, name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def vlm(server: VlmServer, provider: str = "google", **flags: Any) -> list[str]:
    """Flags of a doctor that asks the stand-in."""
    url = server.url + ("/v1" if provider == "openai" else "")
    given = {"preset": "offline", "annotator": "vlm", "vlm": MODELS[provider], "vlm_base_url": url, **flags}
    return [f"--{name}={value}" for name, value in given.items()]


def lines(said: str, name: str) -> list[str]:
    return [line for line in said.splitlines() if re.match(rf"  (ok|-|FAULT) +{re.escape(name)} ", line)]


# Libraries


def test_the_libraries_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [r for r in project["dependencies"] if ";" not in r]  # what some machines lack is done without
    wanted = {*needed, *extras["vlm"], *extras["models"], *extras["review"]}
    sdks = {"google-genai", "openai", "anthropic"}  # brought by pydantic-ai-slim
    assert {library.requirement for library in LIBRARIES if library.name not in sdks} == wanted
    assert {library.name for library in LIBRARIES if not library.used_by} == {
        re.split("[>=]", requirement)[0] for requirement in needed
    }


def test_an_installed_library_is_said_with_its_version() -> None:
    found = {finding.name: finding for finding in doctor.libraries(settings())}
    for name in ("numpy", "pydantic", "torch", "google-genai"):
        assert found[name] == Finding(name, True, importlib.metadata.version(name))


@pytest.mark.parametrize(
    ("flags", "name", "module", "ok", "remedy"),
    [
        ({}, "numpy", "numpy", False, "pip install 'numpy>=1.26'"),
        ({}, "torch", "torch", None, "pip install 'torch>=2.6'"),
        ({"grounder": "owlv2"}, "torch", "torch", False, "pip install 'torch>=2.6'"),
        ({}, "google-genai", "google.genai", None, "pip install 'pydantic-ai-slim[google]>=2.68'"),
        ({"annotator": "vlm"}, "google-genai", "google.genai", False, "pip install 'pydantic-ai-slim[google]>=2.68'"),
        ({"annotator": "vlm"}, "openai", "openai", None, "pip install 'pydantic-ai-slim[openai]>=2.68'"),
        ({"vlm": "openai:m"}, "openai", "openai", None, "pip install 'pydantic-ai-slim[openai]>=2.68'"),
    ],
)
def test_a_missing_library_is_said_with_its_command(
    flags: dict[str, str], name: str, module: str, ok: bool | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert named(doctor.libraries(settings(**flags)), name) == Finding(name, ok, "missing", remedy)


def test_a_library_that_does_not_start_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a system library lacks, or one of its own needs."""
    for module, error in (
        ("torchvision", RuntimeError("operator\nnms")),
        ("skimage", ModuleNotFoundError("x", name="x")),
    ):
        imported = doctor._imported
        monkeypatch.setattr(doctor, "_imported", _raising(imported, module, error))
    found = {finding.name: finding for finding in doctor.libraries(settings())}
    assert found["torchvision"].ok is None
    assert "is installed but does not start: RuntimeError: operator" in found["torchvision"].said
    assert found["scikit-image"].ok is False
    assert found["scikit-image"].remedy == "pip install --force-reinstall 'scikit-image>=0.24'"


def _raising(imported: Any, module: str, error: Exception) -> Any:
    def import_(name: str) -> Any:
        if name == module:
            raise error
        return imported(name)

    return import_


@pytest.mark.parametrize(
    ("version", "old"),
    [("1.25.9", True), ("1.26", False), ("1.26.0", False), ("2.0", False), ("1.9", True), ("1.26.0rc1", False)],
)
def test_an_old_library(version: str, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "numpy" else real(name))
    found = named(doctor.libraries(settings()), "numpy")
    expected = (False, f"{version} is too old", "pip install 'numpy>=1.26'") if old else (True, version, "")
    assert (found.ok, found.said, found.remedy) == expected


@pytest.mark.parametrize(
    ("wheels", "name", "ok", "remedy"),
    [
        (["opencv-python-headless"], "opencv-python-headless", True, ""),
        (["opencv-python"], "opencv-python", True, ""),
        ([], "opencv-python-headless", True, ""),  # as conda installs it
        (
            ["opencv-python", "opencv-python-headless"],
            "opencv",
            False,
            "pip uninstall -y opencv-python-headless opencv-python && pip install 'opencv-python-headless>=4.9'",
        ),
    ],
)
def test_opencv_wheels_side_by_side(
    wheels: list[str], name: str, ok: bool, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(asked: str) -> str:
        if not asked.startswith("opencv"):
            return real(asked)
        if asked in wheels:
            return "4.10.0"
        raise importlib.metadata.PackageNotFoundError(asked)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = [finding for finding in doctor.libraries(settings()) if "opencv" in finding.name]
    assert [(f.name, f.ok, f.remedy) for f in found] == [(name, ok, remedy)]


def test_without_the_base_libraries_it_still_speaks() -> None:
    code = (
        "import sys\nfor name in sys.argv[1:]: sys.modules[name] = None\n"
        "from dataengine.cli import main\nsys.exit(main(['doctor', '--preset', 'offline']))"
    )
    speaks = ("pydantic", "rich", "rich_argparse")
    missing = [library.module for library in LIBRARIES if library.module not in speaks]
    command = [sys.executable, "-c", code, *missing]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT  numpy                    missing -> pip install 'numpy>=1.26'" in done.stdout
    assert "-      GPU                      cannot be seen without torch -> pip install 'torch>=2.6'" in done.stdout
    assert "FAULT  segmenter classical" in done.stdout
    assert "This works here" not in done.stdout


# The machine


def gpus(monkeypatch: pytest.MonkeyPatch, *free_total: tuple[int, int], capability: int = 9) -> None:
    """Make torch see GPUs with this memory."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free_total))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free_total))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: free_total[index])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (capability, 0))


def test_gpus_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, (30 * 2**30, 80 * 2**30), (2**29, 24 * 2**30))
    found = list(doctor.machine(settings(grounder="owlv2")))
    assert found[:3] == [
        Finding("GPU cuda:0", True, "Card 0, 30.0 of 80.0 GiB free, bfloat16"),
        Finding("GPU cuda:1", True, "Card 1, 0.5 of 24.0 GiB free, bfloat16"),
        Finding("device", True, "--device auto is cuda:0, cuda:1 here"),
    ]


def test_a_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, (2**30, 2**30), capability=7)
    assert "no bfloat16" in next(doctor.machine(settings())).said


def test_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, (0, 0))

    def broken(index: int) -> None:
        raise RuntimeError("CUDA error: an illegal thing\nmore")

    monkeypatch.setattr("torch.cuda.mem_get_info", broken)
    found = next(doctor.machine(settings()))
    assert found.ok is None
    assert found.said == "does not answer: RuntimeError: CUDA error: an illegal thing"


def test_no_gpu_is_said_with_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    import torch

    def unavailable() -> bool:
        warnings.warn("the driver is too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    found = next(doctor.machine(settings()))
    assert (found.name, found.ok) == ("GPU", None)
    assert "no GPU that torch sees (UserWarning: the driver is too old): models run on the CPU, slowly" in found.said


@pytest.mark.parametrize(("flags", "ok"), [({"grounder": "owlv2"}, False), ({}, None)])
def test_a_device_that_is_not_there(flags: dict[str, str], ok: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch)
    found = [f for f in doctor.machine(settings(device="cuda:3", **flags)) if f.name == "device"]
    assert [f.ok for f in found] == ([False] if ok is False else [])


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, ok in ((5 * 2**30, True), (2**29, None)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        found = named(doctor.machine(settings()), "disk")
        assert (found.ok, found.said) == (ok, f"{free / 2**30:.1f} GiB free in the working directory")
        assert bool(found.remedy) == (ok is None)


# Parts and keys

SITUATIONS: list[tuple[dict[str, Any], dict[str, str], tuple[str, ...]]] = [
    ({}, {}, ()),
    ({}, {"GOOGLE_API_KEY": "k", "MOONDREAM_API_KEY": "k"}, ()),
    ({"vlm": "openai:m"}, {"GOOGLE_API_KEY": "k"}, ()),
    ({"vlm": "openai:m", "vlm_base_url": "http://127.0.0.1:9"}, {}, ()),
    ({"moondream_url": "http://127.0.0.1:9", "trust_remote_code": True}, {}, ()),
    ({}, {"GEMINI_API_KEY": "k"}, ("torch", "tenacity")),
    ({}, {"GEMINI_API_KEY": "k"}, ("google.genai", "httpx")),
]


@pytest.mark.parametrize(("flags", "environment", "hidden"), SITUATIONS)
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_part_is_ready_just_where_build_misses_nothing(
    flags: dict[str, Any],
    environment: dict[str, str],
    hidden: tuple[str, ...],
    checkpoint: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is really built; from an empty folder, so that no model is looked for elsewhere."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else real(name))
    given = {"grounder_model": str(tmp_path), **({"checkpoint": str(tmp_path)} if checkpoint else {}), **flags}
    ready = set()
    for kind, registered in REGISTRY.items():
        for name in registered:
            chosen = settings(**given, **{kind: name})
            found = named(doctor.parts(chosen), f"{kind} {name}")
            try:
                build(chosen)
                complaint = ""
            except UsageError as error:
                complaint = str(error)
            needs = f"{kind} {name!r} needs " in complaint
            assert found.ok is not needs, complaint
            assert found.said.startswith("chosen: ready") or found.said.removeprefix("chosen: ") in complaint
            ready |= {name} if found.ok else set()
    assert {"measured", "classical"} <= ready != set(REGISTRY["grounder"])


OF_PARTS = [lib for lib in LIBRARIES if lib.used_by and lib.used_by != ("review",)]  # the review page is no part


@pytest.mark.parametrize("library", OF_PARTS, ids=lambda lib: lib.name)
def test_what_a_library_is_used_by_is_what_cannot_be_built_without_it(
    library: doctor.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library.module else True)
    for name in SECRETS:
        monkeypatch.setenv(name, "k")
    for provider, model in MODELS.items():
        given = settings(vlm=model, checkpoint="x", trust_remote_code=True)
        lacking = {
            provider if name == "vlm" and library.name in ("google-genai", "openai", "anthropic") else name
            for kind, registered in REGISTRY.items()
            for name in registered
            if lacks(kind, name, given)
        }
        assert lacking == set(library.used_by) - (set(MODELS) - {provider})


def test_parts_of_the_users_own_and_unknown_ones() -> None:
    found = list(doctor.parts(settings(segmenter="my.module:Part", grounder="nobody")))
    assert named(found, "segmenter my.module:Part") == Finding("segmenter my.module:Part", True, "chosen: ready")
    assert named(found, "grounder nobody").ok is False
    assert "does not exist" in named(found, "grounder nobody").said


@pytest.mark.parametrize(
    ("flags", "environment", "name", "ok", "said"),
    [
        ({}, {}, "google", None, "not set"),
        ({"annotator": "vlm"}, {}, "google", False, "not set"),
        ({"annotator": "vlm"}, {}, "openai", None, "not set"),
        ({"annotator": "vlm"}, {"GOOGLE_API_KEY": ""}, "google", False, "not set"),
        ({"annotator": "vlm"}, {"GEMINI_API_KEY": WRONG}, "google", True, "set in GEMINI_API_KEY"),
        ({"annotator": "vlm", "vlm": "openai:m"}, {}, "openai", False, "not set"),
        ({"annotator": "vlm", "vlm": "openai:m", "vlm_base_url": "http://x"}, {}, "openai", None, "not set"),
        ({"grounder": "moondream"}, {}, "moondream", False, "not set"),
        ({"grounder": "moondream", "moondream_url": "http://x"}, {}, "moondream", None, "not set"),
        ({}, {"MOONDREAM_API_KEY": WRONG}, "moondream", True, "set in MOONDREAM_API_KEY"),
    ],
)
def test_keys(
    flags: dict[str, str],
    environment: dict[str, str],
    name: str,
    ok: bool | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    found = named(doctor.keys(settings(**flags)), name)
    assert (found.ok, found.said) == (ok, said)
    variable = {"google": "GOOGLE_API_KEY", "moondream": "MOONDREAM_API_KEY", "openai": "OPENAI_API_KEY"}[name]
    assert found.remedy == ("" if ok else f"export {variable}=…")


def test_a_key_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel-1234")
    found = named(doctor.keys(settings()), "openai")
    assert (found.ok, found.said) == (None, "OPENAI_API_KEY has a character that no key has")
    assert named(doctor.keys(settings(annotator="vlm", vlm="openai:x")), "openai").ok is False


# Questions


def exact(asked: Asked) -> object:
    """An annotator that sees the disc."""
    x, y = 1000 / WIDTH, 1000 / HEIGHT
    box = [DISC[1] * y, DISC[0] * x, DISC[3] * y, DISC[2] * x]
    return {"regions": [{"label": "red disc", "boxes": [{"box_2d": box}]}]}


@pytest.mark.parametrize("provider", MODELS)
def test_the_annotator_answers(
    provider: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEYS[provider][0], KEY)
    with VlmServer(exact) as server:
        assert main(["doctor", *vlm(server, provider)]) == 0
    (asked,) = server.asked
    assert asked.images == [(WIDTH, HEIGHT)]
    said = capsys.readouterr().out
    assert KEY not in said
    line = lines(said, "annotator vlm")[1]
    assert re.search(r"named 'red disc' in \d+\.\d s \(1 call paid, 1,000 tokens in, 70 out, \$0\.\d{4}\), IoU", line)
    assert line.startswith("  ok") and line.endswith("IoU 1.00 with the disc that was drawn")
    assert said.splitlines()[-1].startswith("Next: dataengine run --input PHOTOS --output_dir runs --preset offline")


def swapped(asked: Asked) -> object:
    """One that mixes up the axes."""
    return {"regions": [{"label": "x" * 5000, "boxes": [{"box_2d": [v * 3 for v in DISC]}]}]}


@pytest.mark.parametrize(
    ("answer", "said"), [(swapped, f"named '{'x' * 60}' in"), (lambda asked: {"regions": []}, "named nothing in")]
)
def test_an_annotator_that_does_not_see_is_no_fault_but_said(
    answer: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    with VlmServer(answer) as server:
        assert main(["doctor", *vlm(server)]) == 0
    line = lines(capsys.readouterr().out, "annotator vlm")[1]
    assert line.startswith("  -") and said in line
    assert "IoU 0.00 with the disc that was drawn -> Look at the overlays" in line


def test_boxes_are_asked_for_only_where_they_are_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    with VlmServer() as server, MoondreamServer() as moondream:
        main(["doctor", *vlm(server, grounder="moondream", moondream_url=moondream.url)])
    assert "boxes" not in server.asked[0].entry["properties"]
    assert "IoU" not in lines(capsys.readouterr().out, "annotator vlm")[1]


@pytest.mark.parametrize(
    ("reply", "flags", "said"),
    [
        (
            Reply(429, message="slow down", headers={"retry-after": "0"}),
            {},
            "asks to slow down (slow down) -> Run again",
        ),
        (Reply(500, message="oh"), {}, "failed (oh) -> "),
        (Reply(hang=5), {"vlm_timeout": 0.3}, "did not answer in time -> Run again, or raise --vlm_timeout"),
        (Reply(blocked="OTHER"), {}, "blocked the picture or its answer"),
        (Reply(401, message=f"Incorrect key: {WRONG[:5]}*****4a3."), {}, "refuses the key (Incorrect key: (hidden)"),
        (Reply(400, message=f"the key '{KEY}' is of another place"), {}, "refuses the request (the key (hidden) is of"),
    ],
)
def test_an_annotator_that_fails_is_one_line_with_its_remedy(
    reply: Reply,
    flags: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is asked once, and the other parts are tried all the same."""
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    with VlmServer(replies={"describe": [reply]}) as server:
        assert main(["doctor", *vlm(server, **flags)]) == 1
    assert len(server.asked) == 1
    out = capsys.readouterr().out
    line = lines(out, "annotator vlm")[1]
    assert line.startswith("  FAULT") and said in line and " -> " in line
    assert KEY not in out
    assert lines(out, "segmenter classical")[1].startswith("  ok")
    assert out.splitlines()[-2].startswith("Next: mend what is marked FAULT, then again: dataengine doctor --preset")
    assert out.splitlines()[-1].endswith("dataengine run --input PHOTOS --output_dir runs --preset offline")


def test_what_a_failure_cost_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    with VlmServer(replies={"describe": [Reply(text="no"), Reply(text="no")]}) as server:
        assert main(["doctor", *vlm(server)]) == 1
    assert "(2 calls paid, 2,000 tokens in, 140 out, $0." in lines(capsys.readouterr().out, "annotator vlm")[1]


@pytest.mark.parametrize("key", [WRONG, f"{WRONG}\n", "schlüssel-zum-haus"])
@pytest.mark.parametrize("provider", MODELS)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_wrong_key_is_a_fault_and_never_shown(
    provider: str,
    key: str,
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not whole, not a piece, not what a library's message shows of it, and not on standard error."""
    monkeypatch.setenv(KEYS[provider][0], key)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with VlmServer() as server:
        assert main(["doctor", *vlm(server, provider)]) == 1
    said = capfd.readouterr()
    assert ("\x1b[" in said.out) == terminal
    assert "FAULT" in said.out
    for shown in (said.out, said.err):
        assert not any(key[i : i + 5] in shown for i in range(len(key) - 5))
        assert "\\xfc" not in shown and "\\n" not in shown


def test_a_port_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", WRONG)
    with VlmServer() as server:
        flags = vlm(server, "openai")
    assert main(["doctor", *flags]) == 1
    assert "could not be reached" in lines(capsys.readouterr().out, "annotator vlm")[1]


def test_moondream_answers(capsys: pytest.CaptureFixture[str]) -> None:
    box = (DISC[0] / WIDTH, DISC[1] / HEIGHT, DISC[2] / WIDTH, DISC[3] / HEIGHT)
    with MoondreamServer(lambda label: [box] if label == "red disc" else []) as server:
        assert main(["doctor", "--preset=offline", "--grounder=moondream", f"--moondream_url={server.url}"]) == 0
    assert [asked.size for asked in server.asked] == [(WIDTH, HEIGHT)]
    line = lines(capsys.readouterr().out, "grounder moondream")[1]
    assert re.search(r"found 1 box in \d+\.\d s \(1 call paid, \$0\.0000\), IoU 1\.00 with", line)


def test_moondream_refuses_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MOONDREAM_API_KEY", WRONG)
    reply = moondream_server.Reply(403, f"the key {WRONG} is not known")
    with MoondreamServer(replies=[reply]) as server:
        assert main(["doctor", "--preset=offline", "--grounder=moondream", f"--moondream_url={server.url}"]) == 1
    out = capsys.readouterr().out
    line = lines(out, "grounder moondream")[1]
    assert "refuses the key" in line and line.endswith("-> Check MOONDREAM_API_KEY, then run again")
    assert WRONG not in out and len(server.asked) == 1


def test_local_models_are_loaded_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real loading code, tiny random weights: they answer, and what they answer is not trusted."""
    from tests.standins.tiny_detectors import save_tiny_owlv2
    from tests.standins.tiny_sam2 import save_tiny_sam2

    save_tiny_owlv2(tmp_path / "owl")
    save_tiny_sam2(tmp_path / "sam")
    flags = ["--preset=offline", "--grounder=owlv2", f"--grounder_model={tmp_path / 'owl'}", "--segmenter=sam2"]
    assert main(["doctor", *flags, f"--checkpoint={tmp_path / 'sam'}", "--device=cpu"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"found \d+ box(es)? in ", lines(out, "grounder owlv2")[1])
    assert re.search(r"cut a mask in \d+\.\d s, IoU 0\.\d\d with ", lines(out, "segmenter sam2")[1])
    assert lines(out, "device")[0].endswith("--device cpu is cpu here")


def test_a_part_that_cannot_be_built_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset=offline", "--segmenter=sam2", "--checkpoint=no/such.pt", "--annotator=no.such:Part"]
    assert main(["doctor", *flags]) == 1
    out = capsys.readouterr().out
    assert "no such file" in lines(out, "segmenter sam2")[1]
    assert "cannot be built: ModuleNotFoundError" in lines(out, "annotator no.such:Part")[1]
    assert lines(out, "grounder annotator")[1].endswith("not asked: it looks for nothing by itself")


class Odd:
    """A grounder of the user's own that fails in its own way."""

    name, version, needs_boxes, detects = "odd", "1", False, True

    def __init__(self, settings: Settings) -> None:
        self.detail: dict[str, str] = {}

    async def ground(self, photo: object, region: DescribedRegion) -> Answer[list[Detection]]:
        raise LookupError("odd\nindeed")


def test_other_peoples_exceptions_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--preset=offline", f"--grounder={__name__}:Odd"]) == 1
    (_, line) = lines(capsys.readouterr().out, f"grounder {__name__}:Odd")
    assert "fails: LookupError: odd -> Check its settings" in line


# The command


def test_offline_is_ready_and_each_part_sees_the_disc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--preset", "offline"]) == 0
    out = capsys.readouterr().out
    for name in ("annotator measured", "segmenter classical"):
        found = re.search(r"IoU (\d\.\d\d) with", lines(out, name)[1])
        assert found and float(found[1]) > 0.9
    assert "FAULT" not in out
    assert out.splitlines()[-1] == "Next: dataengine run --input PHOTOS --output_dir runs --preset offline"


def test_nothing_chosen_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The standard preset without key and checkpoint: what to do, and what works meanwhile."""
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert lines(out, "annotator vlm") == ["  FAULT  annotator vlm            chosen: needs a key (set GOOGLE_API_KEY)"]
    assert "chosen: needs a checkpoint (--checkpoint FILE.pt" in lines(out, "segmenter sam2")[0]
    assert out.splitlines()[-1].endswith("dataengine run --input PHOTOS --output_dir runs --preset offline")


@pytest.mark.parametrize("preset", PRESETS)
def test_no_calls(preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is built or asked; ready parts are enough for exit code 0."""
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    monkeypatch.setattr(doctor, "_answer", None)
    flags = ["--preset", preset, "--checkpoint", "no/such.pt", "--trust_remote_code", "--no-calls"]
    assert main(["doctor", *flags]) == 0
    assert main(["doctor", *flags, "--vlm", "openai:m"]) == (0 if preset == "offline" else 1)
    assert KEY not in capsys.readouterr().out


def test_wrong_settings_are_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--preset", "nosuch"]) == 2
    assert main(["doctor", "--settings", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().out == ""


def test_a_settings_file_is_read_and_named_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my settings.toml"
    file.write_text('preset = "offline"\nmax_regions = 3\n')
    assert main(["doctor", "--settings", str(file), "--no-exhaustive", "--no-calls"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Next: dataengine run --input PHOTOS --output_dir runs --settings '{file}' --no-exhaustive"


def test_the_command_it_names_means_the_same() -> None:
    """Each flag that doctor takes, given, read back from the command named last."""
    given = [
        "--preset=offline", "--vlm=openai:a b", "--temperature=0.7,verify=0", "--trust_remote_code", "--no-exhaustive",
        "--device_batch=2", "--vlm_timeout=3.5",
    ]  # fmt: skip
    flags = {k: v for k, v in vars(parser().parse_args(["doctor", *given])).items() if k not in NO_SETTINGS}
    again = shlex.split(doctor.as_typed(flags, None))
    run = parser().parse_args(["run", "-i", "x", "-o", "y", *again])
    assert {k: v for k, v in vars(run).items() if k not in NO_SETTINGS} == flags


def test_help_imports_nothing_heavy_and_has_the_flags_of_run() -> None:
    code = (
        "import sys\nfrom dataengine.cli import main\n"
        "try:\n    main(['doctor', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'cv2', 'pydantic', 'asyncio', 'torch'} & set(sys.modules), 'heavy'"
    )
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout
    for flag in ("--preset", "--annotator", "--vlm_base_url", "--checkpoint", "--device", "--settings", "--no-calls"):
        assert f"{flag} " in done.stdout
    assert "--input" not in done.stdout and "--concepts" not in done.stdout
