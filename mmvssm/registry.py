"""Registries: children of MMEngine's roots, so that ``mmvssm.X`` is found from any library.

Each child names the modules that register into it (``locations``); MMEngine
imports them when a type with scope ``mmvssm`` is first looked up.
"""

from mmengine import registry as root
from mmengine.registry import Registry

_MODELS = ["mmvssm.models"]
_ENGINE = ["mmvssm.engine"]
_SHARDING = ["mmvssm.engine.fsdp"]

RUNNERS = Registry("runner", parent=root.RUNNERS, scope="mmvssm", locations=_ENGINE)
RUNNER_CONSTRUCTORS = Registry(
    "runner constructor", parent=root.RUNNER_CONSTRUCTORS, scope="mmvssm", locations=_ENGINE
)
LOOPS = Registry("loop", parent=root.LOOPS, scope="mmvssm", locations=_ENGINE)
HOOKS = Registry("hook", parent=root.HOOKS, scope="mmvssm", locations=_ENGINE)
STRATEGIES = Registry("strategy", parent=root.STRATEGIES, scope="mmvssm", locations=_SHARDING)
DATASETS = Registry("dataset", parent=root.DATASETS, scope="mmvssm", locations=_ENGINE)
DATA_SAMPLERS = Registry(
    "data sampler", parent=root.DATA_SAMPLERS, scope="mmvssm", locations=_ENGINE
)
TRANSFORMS = Registry("transform", parent=root.TRANSFORMS, scope="mmvssm", locations=_ENGINE)
MODELS = Registry("model", parent=root.MODELS, scope="mmvssm", locations=_MODELS)
MODEL_WRAPPERS = Registry(
    "model wrapper", parent=root.MODEL_WRAPPERS, scope="mmvssm", locations=_MODELS
)
WEIGHT_INITIALIZERS = Registry(
    "weight initializer", parent=root.WEIGHT_INITIALIZERS, scope="mmvssm", locations=_MODELS
)
OPTIMIZERS = Registry("optimizer", parent=root.OPTIMIZERS, scope="mmvssm", locations=_ENGINE)
OPTIM_WRAPPERS = Registry(
    "optim wrapper", parent=root.OPTIM_WRAPPERS, scope="mmvssm", locations=_ENGINE
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optim wrapper constructor",
    parent=root.OPTIM_WRAPPER_CONSTRUCTORS,
    scope="mmvssm",
    locations=_ENGINE,
)
PARAM_SCHEDULERS = Registry(
    "param scheduler", parent=root.PARAM_SCHEDULERS, scope="mmvssm", locations=_ENGINE
)
METRICS = Registry("metric", parent=root.METRICS, scope="mmvssm", locations=_ENGINE)
EVALUATOR = Registry("evaluator", parent=root.EVALUATOR, scope="mmvssm", locations=_ENGINE)
TASK_UTILS = Registry("task util", parent=root.TASK_UTILS, scope="mmvssm", locations=_ENGINE)
VISUALIZERS = Registry("visualizer", parent=root.VISUALIZERS, scope="mmvssm", locations=_ENGINE)
VISBACKENDS = Registry("vis_backend", parent=root.VISBACKENDS, scope="mmvssm", locations=_ENGINE)
LOG_PROCESSORS = Registry(
    "log_processor", parent=root.LOG_PROCESSORS, scope="mmvssm", locations=_ENGINE
)
INFERENCERS = Registry("inferencer", parent=root.INFERENCERS, scope="mmvssm", locations=_ENGINE)
FUNCTIONS = Registry("function", parent=root.FUNCTIONS, scope="mmvssm", locations=_SHARDING)
