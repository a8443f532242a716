"""DataEngine: photos in, verified (image, prompt, mask) pairs out.

The method is in `pipeline.py`. Importing the package imports nothing heavy; parts are imported when built.
"""

__version__ = "0.5.0"
