"""Models of the Hugging Face hub, or of a local folder in its layout: found, identified and loaded, or one clear line.

A hub id is turned into a folder of the hub's cache first, in one look-up: loading from a folder asks the network
nothing, where the loaders of transformers ask for every file and try each six times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dataengine.errors import DataEngineError, UsageError

T = TypeVar("T")

# Configuration, tokenizer, code of the model's own, and weights; not the same weights in the formats of others.
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.safetensors")
_OLDER_WEIGHTS = ("*.json", "pytorch_model*.bin")

_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_folder(flag: str, where: str, revision: str | None = None) -> Path:
    """The folder with a model's files: `where` itself, or the hub's cache, filled where it is not yet.

    Args:
        flag: the flag that names the model, for messages: `--grounder_model`.
        where: a local folder or a hub id.
        revision: branch, tag or commit of a hub id.

    Raises:
        UsageError: there is none, or it cannot be downloaded.
    """
    local = Path(where).expanduser()
    if local.is_dir():
        return local
    from huggingface_hub import errors

    try:
        folder = _snapshot(where, revision, _FILES)
        return folder if any(folder.rglob("*.safetensors")) else _snapshot(where, revision, _OLDER_WEIGHTS)
    except errors.HFValidationError:
        what, hint = "there is no such folder, and a hub id reads OWNER/NAME", "Check the path"
    except errors.GatedRepoError:
        what, hint = "its owner asks for a licence to be accepted", "Accept it on its page, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        what, hint = "there is no such folder, and the hub has no such model", "Check the name"
    except errors.RevisionNotFoundError:
        what, hint = f"the hub has no revision {revision!r} of it", "Check the revision"
    except errors.LocalEntryNotFoundError:
        what = "there is no such folder, it is not in the hub's cache, and the hub cannot be reached"
        hint = f"Check the network, or name a folder with the model: {flag} DIR"
    except Exception as error:  # the network's and the disk's many
        what, hint = f"it cannot be downloaded ({_first_line(error)})", f"Download it by hand: {flag} DIR"
    raise UsageError(f"{flag} {where}: {what}", hint=hint)


def _snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def identity_of(folder: Path) -> str:
    """What tells a model's files from another's: the commit for a folder of the hub's cache, else their digest.

    Returns:
        The first 12 hex digits of the commit, or of a SHA-256 of the files' names and content.
    """
    if _COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots":
        return folder.name[:12]
    whole = hashlib.sha256()
    for file in sorted({file for pattern in (*_FILES, *_OLDER_WEIGHTS) for file in folder.glob(pattern)}):
        with file.open("rb") as content:
            whole.update(f"{file.name}:{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:12]


def load_from_hub(flag: str, load: Callable[[], T], where: str) -> T:
    """What `load` makes of a model's files, without progress bars and notices; any failure as one line.

    Args:
        flag: the flag that names the model, for messages.
        load: calls `from_pretrained` on the folder; errors of ours pass through.
        where: the model as the user named it.

    Raises:
        UsageError: the files are damaged, of another kind, or need what is not installed.
    """
    try:
        with quiet():
            return load()
    except DataEngineError:
        raise
    except ImportError as error:
        hint = "Install what it names"
        raise UsageError(f"{flag} {where}: cannot be loaded ({_first_line(error)})", hint=hint) from None
    except Exception as error:  # transformers, safetensors and a model's own code raise all kinds
        hint = "Check that the folder is whole and holds a model of this kind"
        raise UsageError(f"{flag} {where}: cannot be loaded ({_first_line(error)})", hint=hint) from None


def load_model(flag: str, where: str, folder: Path, model_class: Any, kinds: Sequence[str], **options: Any) -> Any:
    """A transformers model with every weight from its files, in evaluation mode.

    transformers fills weights that are not in the files with random numbers, and loads a model of another kind as far
    as names agree: both are refused here.

    Args:
        flag, where: for messages, as above.
        folder: the model's files.
        model_class: a class of transformers, such as `Sam3Model`.
        kinds: the values of `model_type` in `config.json` that it takes.
        options: for `from_pretrained`, such as `dtype`.

    Raises:
        UsageError: as `load_from_hub`, or another kind of model, or weights that lack.
    """

    def load() -> Any:
        found = model_type(folder)
        if found not in kinds:
            hint = f"Name a model of type {' or '.join(kinds)}"
            raise UsageError(f"{flag} {where}: a model of type {found!r}, which is no {kinds[0]}", hint=hint)
        model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
        if missing := sorted(report["missing_keys"]):
            what = f"{len(missing)} weights are not in its files, such as {missing[0]}"
            raise UsageError(f"{flag} {where}: {what}", hint="Download it again")
        return model.eval()

    return load_from_hub(flag, load, where)


def model_type(folder: Path) -> str:
    """`model_type` of a folder's `config.json`; empty where there is none.

    Raises:
        OSError, ValueError: there is no such file, or it is no JSON.
    """
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(content.get("model_type", "")) if isinstance(content, dict) else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and notices on standard error."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    """An error of a library as one short line; where it says nothing, its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__
