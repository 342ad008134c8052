"""What Apple's GPUs refuse, so that tests find it on a machine without one.

Source of the list of ops: the file ``native_functions.yaml`` that torch ships, which names the
devices of every op; that of the rules on dtypes: ``ATen/mps/EmptyTensor.cpp`` (no float64) and
``ATen/native/mps/operations/Indexing.mm`` (advanced indices are int64) of PyTorch 2.x. What an op
does below the dispatcher, and whether Metal computes it right, is not seen.
"""

from functools import lru_cache
from pathlib import Path

import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

FUNCTIONS = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
# ops that are composed of others
COMPOSITE = {
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
}
ADVANCED_INDEX = {
    torch.ops.aten.index.Tensor: 1,
    torch.ops.aten.index_put.default: 1,
    torch.ops.aten.index_put_.default: 1,
    torch.ops.aten._index_put_impl_.default: 1,
    torch.ops.aten._unsafe_index.Tensor: 1,
    torch.ops.aten._unsafe_index_put.default: 1,
}


@lru_cache
def functions_on_mps(path=FUNCTIONS):
    """Return the names ``op.overload`` of the ops that run on Apple's GPUs."""
    # torch's own loader does the same: the C one is many times faster
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = {}
    for entry in yaml.load(Path(path).read_text(), loader):
        entries[entry["func"].split("(")[0]] = entry

    def runs(name):
        entry = entries[name]
        keys = {key.strip() for group in entry.get("dispatch", {}) for key in group.split(",")}
        if "MPS" in keys or keys & COMPOSITE:
            return True
        delegate = entry.get("structured_delegate")
        return runs(delegate) if delegate else not keys

    return {name for name in entries if runs(name)}


class LikeMPS(TorchDispatchMode):
    """Raises at the first call that an Apple GPU would refuse; records the names of all ops."""

    def __init__(self):
        super().__init__()
        self.known, self.seen = functions_on_mps(), set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.name().removeprefix("aten::")
        self.seen.add(name)
        # every device has its own attention
        if name not in self.known and not name.startswith("_scaled_dot_product_"):
            raise NotImplementedError(f"no kernel for Apple's GPUs: {op.name()}")
        if op in ADVANCED_INDEX:
            for index in args[ADVANCED_INDEX[op]]:
                if index is not None and index.dtype not in (torch.int64, torch.bool):
                    raise TypeError(f"{op.name()} takes int64 indices there, got {index.dtype}")
        results = op(*args, **(kwargs or {}))
        for value in tree_flatten((args, kwargs, results))[0]:
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                raise TypeError(f"no float64 on Apple's GPUs: {op.name()}")
        return results
