"""Fine-tuning on custom datasets: reading and checking the data, and adapting a recipe to them."""

from .config import fit_to_data
from .data import DataError, Layout, OwnData, Split
from .reading import read_data
from .start import set_start

__all__ = ["DataError", "Layout", "OwnData", "Split", "fit_to_data", "read_data", "set_start"]
