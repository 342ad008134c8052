"""Parameter groups that every ``torch.compile`` understands."""

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict

from mmvssm.registry import HOOKS


@HOOKS.register_module()
class PlainGroupsHook(Hook):
    """Hook that makes the parameter groups of optimizers plain dicts before training.

    MMEngine creates them as configs (``ConfigDict``), on which the compiler of torch 2.14 fails.
    ``tools/train.py`` adds this hook where ``compile`` is set.
    """

    def before_train(self, runner) -> None:
        """Replace the groups; their values and parameters stay the same objects."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for each in wrappers:
            groups = each.optimizer.param_groups
            groups[:] = [dict(group.items()) for group in groups]
