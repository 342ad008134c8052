"""Registries: children of MMEngine's roots, so that ``mmvssm.X`` is found from any library.

Each child names the module that registers into it (its location), which MMEngine imports when a
type of scope ``mmvssm`` is first looked up. Every root has a child, so that a config can switch to
this scope entirely.
"""

from mmengine import registry as root
from mmengine.registry import Registry


def _child(parent: Registry, location: str) -> Registry:
    return Registry(parent.name, parent=parent, scope="mmvssm", locations=[location])


MODELS = _child(root.MODELS, "mmvssm.models")
MODEL_WRAPPERS = _child(root.MODEL_WRAPPERS, "mmvssm.models")
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS, "mmvssm.models")
STRATEGIES = _child(root.STRATEGIES, "mmvssm.engine.fsdp")
FUNCTIONS = _child(root.FUNCTIONS, "mmvssm.engine.fsdp")
RUNNERS = _child(root.RUNNERS, "mmvssm.engine")
RUNNER_CONSTRUCTORS = _child(root.RUNNER_CONSTRUCTORS, "mmvssm.engine")
LOOPS = _child(root.LOOPS, "mmvssm.engine")
HOOKS = _child(root.HOOKS, "mmvssm.engine")
DATASETS = _child(root.DATASETS, "mmvssm.engine")
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, "mmvssm.engine")
TRANSFORMS = _child(root.TRANSFORMS, "mmvssm.engine")
OPTIMIZERS = _child(root.OPTIMIZERS, "mmvssm.engine")
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, "mmvssm.engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, "mmvssm.engine")
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS, "mmvssm.engine")
METRICS = _child(root.METRICS, "mmvssm.engine")
EVALUATOR = _child(root.EVALUATOR, "mmvssm.engine")
TASK_UTILS = _child(root.TASK_UTILS, "mmvssm.engine")
VISUALIZERS = _child(root.VISUALIZERS, "mmvssm.engine")
VISBACKENDS = _child(root.VISBACKENDS, "mmvssm.engine")
LOG_PROCESSORS = _child(root.LOG_PROCESSORS, "mmvssm.engine")
INFERENCERS = _child(root.INFERENCERS, "mmvssm.engine")
