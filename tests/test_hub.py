from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import transformers

from dataengine import hub
from dataengine.errors import StageError, UsageError
from dataengine.hub import identity_of, load_from_hub, load_model, model_folder
from tests.standins.tiny_detectors import save_tiny_owlv2

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# What the hub answers, by the model's name: status and the code in its header.
ANSWERS = {
    "absent": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "moved": (404, "RevisionNotFound"),
    "broken": (500, ""),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, code = ANSWERS[self.path.split("/")[4].partition("?")[0]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that has no model to give."""
    answering = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=answering.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{answering.server_port}")
    yield
    answering.shutdown()
    answering.server_close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def fails(where: str, revision: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        model_folder("--checkpoint", where, revision)
    told = str(caught.value)
    assert told.startswith(f"--checkpoint {where}: ")
    assert len(told.splitlines()) == 1
    return told


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert model_folder("--checkpoint", str(tmp_path)) == tmp_path


@pytest.mark.parametrize("where", ["/no/such/folder", "./gone", "a b", "one/two/three"])
def test_a_folder_that_is_not_there(where: str) -> None:
    assert "no such folder" in fails(where)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("absent", "the hub has no such model"),
        ("gated", "hf auth login"),
        ("moved", "the hub has no revision 'v9'"),
        ("broken", "Download it by hand|the hub cannot be reached"),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_the_hub_refuses(name: str, told: str) -> None:
    assert any(text in fails(f"owner/{name}", "v9") for text in told.split("|"))


@pytest.mark.usefixtures("offline")
def test_no_network_is_one_line_with_the_way_out() -> None:
    told = fails("owner/model")
    assert "the hub cannot be reached" in told
    assert "--checkpoint DIR" in told


@pytest.mark.usefixtures("offline")
def test_what_was_downloaded_is_found_without_a_network(tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "models--owner--model"
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    folder = model_folder("--checkpoint", "owner/model")
    assert folder == snapshot
    assert identity_of(folder) == COMMIT[:12]


@pytest.mark.parametrize(("weights", "calls"), [("model.safetensors", 1), ("pytorch_model.bin", 2)])
def test_older_weights_are_downloaded_only_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, calls: int
) -> None:
    asked: list[Sequence[str]] = []

    def snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
        asked.append(patterns)
        if any(Path(weights).match(pattern) for pattern in patterns):
            (tmp_path / weights).touch()
        return tmp_path

    monkeypatch.setattr(hub, "_snapshot", snapshot)
    model_folder("--checkpoint", "owner/model")
    assert (tmp_path / weights).exists()
    assert len(asked) == calls


def test_the_identity_follows_names_and_content_and_not_the_place(tmp_path: Path) -> None:
    def folder(name: str, file: str, content: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
        (tmp_path / name / "notes.md").write_text(name)
        return tmp_path / name

    one = folder("one", "config.json", "{}")
    same = folder("same", "config.json", "{}")
    others = [folder("content", "config.json", "{ }"), folder("name", "other.json", "{}"), folder("bin", "a.txt", "")]
    assert identity_of(one) == identity_of(same)
    assert len({identity_of(each) for each in (one, *others)}) == 4
    assert len(identity_of(one)) == 12


def test_loading_is_quiet_and_leaves_the_librarys_voice_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_tiny_owlv2(tmp_path)
    capfd.readouterr()
    verbosity = transformers.logging.get_verbosity()
    load_model("--checkpoint", "x", tmp_path, transformers.Owlv2ForObjectDetection, ("owlv2",))
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity
    assert transformers.logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("Error no file named model.safetensors.\n\nLong advice"), "no file named model.safetensors)"),
        (ImportError("Install `timm`"), "Install `timm`"),
        (RuntimeError(""), "(RuntimeError)"),
    ],
)
def test_any_failure_is_one_line(error: Exception, told: str) -> None:
    def load() -> None:
        raise error

    with pytest.raises(UsageError, match="--checkpoint my/model: cannot be loaded") as caught:
        load_from_hub("--checkpoint", load, "my/model")
    assert told in str(caught.value)
    assert "advice" not in str(caught.value)


def test_an_error_of_ours_is_left_as_it_is() -> None:
    error = StageError("as it was")

    def load() -> None:
        raise error

    with pytest.raises(StageError) as caught:
        load_from_hub("--checkpoint", load, "my/model")
    assert caught.value is error


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", b"{oops"),
        ("config.json", b"[]"),
        ("config.json", json.dumps({"model_type": "bert"}).encode()),
        ("model.safetensors", None),
        ("model.safetensors", b"cut off"),
    ],
)
def test_files_that_are_no_such_model(tmp_path: Path, file: str, content: bytes | None) -> None:
    folder = save_tiny_owlv2(tmp_path / "model")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_model("--checkpoint", "mine", folder, transformers.Owlv2ForObjectDetection, ("owlv2",))
    assert str(caught.value).startswith("--checkpoint mine: ")
    assert len(str(caught.value).splitlines()) == 1


def test_weights_of_another_size(tmp_path: Path) -> None:
    folder = save_tiny_owlv2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model("--checkpoint", "mine", folder, transformers.Owlv2ForObjectDetection, ("owlv2",))
    shutil.rmtree(folder)
