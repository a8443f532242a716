"""JPEGs of what a model sees: a photo's view is encoded once and used in every call that shows it."""

from __future__ import annotations

import cv2

from dataengine.images import Photo, RgbArray
from dataengine.once import OncePer

QUALITY = 90  # of 100: a tenth of a PNG's bytes


def jpeg(rgb: RgbArray, quality: int = QUALITY) -> bytes:
    """A picture (h, w, 3) uint8 RGB as a JPEG file's bytes; quality is of 100."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV could not encode a JPEG of shape {rgb.shape}")
    return data.tobytes()


jpeg_of: OncePer[Photo, bytes] = OncePer(lambda photo: jpeg(photo.view))
