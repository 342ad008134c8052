"""Golden cases: reading them, building what they describe, and comparing.

Readers of further kinds of case are added with :func:`register_reader`.
"""

from .cases import READERS, Case, register_reader
from .compare import Comparison, MalformedCase, Tolerance, UnsupportedCase
from .models import Classifier, Dense, ModelSpec, hierarchical
from .recipe import fill_value, make_input
from .verify import Result, find_cases, verify_file

__all__ = [
    "READERS",
    "Case",
    "Classifier",
    "Comparison",
    "Dense",
    "MalformedCase",
    "ModelSpec",
    "Result",
    "Tolerance",
    "UnsupportedCase",
    "fill_value",
    "find_cases",
    "hierarchical",
    "make_input",
    "register_reader",
    "verify_file",
]
