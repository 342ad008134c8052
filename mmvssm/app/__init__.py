"""A page in the browser that shows what a trained network does with an image."""

from .explorer import Explorer, Scene

__all__ = ["Explorer", "Scene"]
