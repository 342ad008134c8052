"""A demo page for the browser that shows what a trained network does with an image."""

from .explorer import Explorer, Scene

__all__ = ["Explorer", "Scene"]
