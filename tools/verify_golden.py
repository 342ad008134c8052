"""Verify models and operators against golden cases."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections import Counter
from pathlib import Path

# the verifier is part of the tests, which are not installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from mmvssm.ops.backend import BACKENDS
from verifier import Tolerance, find_cases, verify_file

DESCRIPTION = """\
For each golden case below the given folders, build the model or call the operator that it
describes, load its weights and input, and compare every stored output and gradient.

A case consists of NAME.json (the model or operator) and NAME.npz (results of the reference). The
tool prints one line per case with the worst error and its tensor; the last line counts the cases.
The exit status is 1 if a case failed, none was found or the backend cannot run; cases that this
version does not support do not fail.
"""
EXAMPLES = """\
examples:
  python tools/verify_golden.py tests/golden                    # all cases, fastest backend
  python tools/verify_golden.py tests/golden --backend torch    # the PyTorch path, tight tolerances
  python tools/verify_golden.py tests/golden/vmamba/micro_v05_32x48.json --tol 1e-6
  python tools/verify_golden.py my_cases --import my_readers    # my_readers.py in this folder
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="DIR", help="folders with cases, or JSON files")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="backend of the scan; 'cuda' also runs the models on the GPU (default: auto)",
    )
    parser.add_argument(
        "--tol",
        type=float,
        help="largest relative error allowed, also for gradient norms"
        " (default: 1e-5 and 5e-5 for gradient norms with backend torch; 1e-4 with others)",
    )
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="Python module to import first, which may add readers for other kinds of cases with"
        " verifier.register_reader; may be given several times",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.tol is not None and not args.tol > 0:
        sys.exit(f"--tol must be positive, got {args.tol}")
    tolerance = None if args.tol is None else Tolerance(args.tol, args.tol)
    sys.path.append(os.getcwd())
    for module in args.imports:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            sys.exit(f"error: --import {module}: {error}")
    counts: Counter[str] = Counter()
    try:
        cases = find_cases(args.paths)
        for path in cases:
            start = time.perf_counter()
            for result in verify_file(path, args.backend, tolerance):
                seconds = time.perf_counter() - start
                print(
                    f"{result.status:<11} {result.name}: {result.detail} [{seconds:.1f} s]",
                    flush=True,
                )
                counts[result.status] += 1
                start = time.perf_counter()
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    if not cases:
        print(f"error: no golden case below {', '.join(args.paths)}", file=sys.stderr)
    print(
        f"{counts['passed']} passed, {counts['failed']} failed, {counts['unsupported']} unsupported"
    )
    return int(not cases or counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
