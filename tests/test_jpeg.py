from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataengine.images import Photo
from dataengine.jpeg import jpeg, jpeg_of


def test_channels_stay_in_order() -> None:
    drawn = np.zeros((40, 60, 3), np.uint8)
    drawn[:, 30:] = (250, 10, 10)
    back = np.asarray(Image.open(io.BytesIO(jpeg(drawn))))
    assert back.shape == (40, 60, 3)
    assert np.abs(back.astype(int) - drawn).mean() < 3


def test_a_photos_view_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    real = cv2.imencode
    monkeypatch.setattr(cv2, "imencode", lambda *given: encoded.append(given) or real(*given))  # type: ignore[func-returns-value]
    photo = Photo(Path("a.png"), np.zeros((30, 2000, 3), np.uint8), "0", view_side=500)
    first, second = jpeg_of(photo), jpeg_of(photo)
    assert first is second
    assert len(encoded) == 1
    assert Image.open(io.BytesIO(first)).size == (500, 8)


def test_what_cannot_be_encoded_is_said() -> None:
    with pytest.raises((ValueError, cv2.error)):
        jpeg(np.zeros((0, 0, 3), np.uint8))
