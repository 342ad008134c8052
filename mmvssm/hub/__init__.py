"""Released weights by name: ``checkpoint='mmvssm://vmamba-tiny-s1l8'`` wherever MMEngine takes one.

An address names a file that the authors of a family published, or is the path or URL of one. The
file is downloaded once, converted without running code in it, compared with its arch, and cached.
"""

# ruff: noqa: F401  re-exported

from mmvssm.files import home

from .address import Address, released_files
from .loading import load_weights, read_weights_file
from .store import ReleasedFileError, fetch
