"""Golden cases: reading them, building what they describe, comparing."""

from .golden import Result, Tolerance, find_cases, verify_file

__all__ = ["Result", "Tolerance", "find_cases", "verify_file"]
