"""The images of a run that are still to be done, each claimed when it is taken, so that processes can share them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from dataengine import limits
from dataengine.basis import Basis, fingerprint
from dataengine.journal import digest
from dataengine.leases import Claim, Owner
from dataengine.output_folder import Folders, content_now
from dataengine.run_folder import RunFolder, path_text
from dataengine.settings import Settings

POLL = 0.5  # seconds between two looks at what other processes do, and between two signs of progress


class Todo:
    """The images of a run that are still to be done.

    Args:
        owner: claims them; entered.
        rests_on: what results rest on: an image whose results rest on something else is not done.
    """

    def __init__(
        self, images: Sequence[Path], output_dir: Path, owner: Owner, settings: Settings, rests_on: Basis
    ) -> None:
        self._images, self._later = deque(images), deque[tuple[Path, RunFolder]]()
        self._folders = Folders(output_dir, images)
        self._owner, self._settings, self._rests_on = owner, settings, digest(rests_on)
        self._turn = asyncio.Lock()

    async def take(self, skip: Callable[[Sequence[Path]], None]) -> tuple[Path, RunFolder] | None:
        """The next image with its folder, to be given back by `release`; None where the run is stopped or none is left.

        Where other processes do all that is left, it waits until they have, or have died.

        Args:
            skip: is told of images that are done already.
        """
        async with self._turn:  # in the order of images, since folders are named in it
            while (self._images or self._later) and not limits.current().stopped:
                waits = not self._images
                job, done = await asyncio.to_thread(self._search)
                if done:
                    skip(done)
                if job:
                    return job
                if waits:
                    await limits.current().pause(POLL)
        return None

    def release(self, folder: RunFolder) -> None:
        """Give an image back, done or failed."""
        self._owner.release(folder.path.name)

    def _search(self) -> tuple[tuple[Path, RunFolder] | None, list[Path]]:
        """The first image that can be taken, and those found done before it; after a while it gives up."""
        done: list[Path] = []
        until = time.monotonic() + POLL
        for jobs in (self._images, self._later):
            for _ in range(len(jobs)):
                if time.monotonic() > until:
                    return None, done
                job = jobs.popleft()
                image, folder = job if isinstance(job, tuple) else (job, self._folders.of(job))
                claim, folder = self._claim(image, folder)
                if claim == "ours":
                    return (image, folder), done
                if claim == "done":
                    done.append(image)
                else:
                    self._later.append((image, folder))
        return None, done

    def _claim(self, image: Path, folder: RunFolder) -> tuple[Claim | Literal["done"], RunFolder]:
        others: list[str] = []
        try:
            return self._claimed(image, folder, others)
        finally:
            self._folders.give_back(others)

    def _claimed(self, image: Path, folder: RunFolder, others: list[str]) -> tuple[Claim | Literal["done"], RunFolder]:
        while True:
            if self._is_done(image, folder):
                return "done", folder
            claim = self._owner.claim(folder.path.name, path_text(image))
            folder.release()  # until now another process may have written it
            if claim == "theirs":
                return claim, folder
            if claim == "ours" and self._folders.is_free(folder.path.name, image):
                if not self._is_done(image, folder):
                    return claim, folder
                self.release(folder)
                return "done", folder
            if claim == "ours":
                self.release(folder)
            else:
                others.append(folder.path.name)
            folder = self._folders.of(image)

    def _is_done(self, image: Path, folder: RunFolder) -> bool:
        if self._settings.overwrite or folder.head is None or not folder.head.complete:
            return False
        content = content_now(image, folder.head.source)
        if content is None:
            return False
        mark = fingerprint(content, self._rests_on)
        return folder.is_complete(mark, self._settings.concepts, self._settings.negatives)
