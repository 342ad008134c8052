"""A training of another length follows the curve of its recipe."""

import re
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import TensorDataset

from mmvssm.engine import set_epochs
from mmvssm.engine.schedule import check_length

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
IN1K = "vmamba/vmamba-tiny-s1l8_8xb128_in1k"
DET = "vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco"
LSJ = "vim/cascade-mask-rcnn_vim-tiny_fpn_lsj-184k_coco"
SEG = "vmamba/vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512"


def read(name):
    return Config.fromfile(CONFIGS / f"{name}.py")


def rates(cfg, epoch_length=None):
    """Return the learning rate of every iteration, with schedules stepped as by MMEngine."""
    init_default_scope(cfg.default_scope)
    loop = cfg.train_cfg
    total = loop.max_iters if "max_iters" in loop else loop.max_epochs * epoch_length
    optimizer = torch.optim.SGD(
        [torch.zeros(1, requires_grad=True)], lr=cfg.optim_wrapper.optimizer.lr
    )
    ends = {True: loop.get("max_epochs"), False: total}
    schedules = [
        PARAM_SCHEDULERS.build(
            {"end": ends[schedule.get("by_epoch", True)], **schedule},
            default_args=dict(optimizer=OptimWrapper(optimizer), epoch_length=epoch_length),
        )
        for schedule in cfg.param_scheduler
    ]
    seen = []
    for iteration in range(1, total + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        for schedule in schedules:
            if not schedule.by_epoch or iteration % epoch_length == 0:
                schedule.step()
    return seen


@pytest.mark.parametrize(
    ("name", "epochs", "tolerance"),
    [
        (IN1K, 60, 0.02),
        ("vim/vim-tiny_8xb128_in1k", 60, 0.04),  # of the recipe, in steps of an epoch
        ("efficient_vmamba/efficient-vmamba-base_8xb128_in1k", 60, 0.06),
        (IN1K, 600, 0.02),
    ],
)
def test_curve_of_a_recipe_in_epochs(name, epochs, tolerance):
    """At the same fraction of the training the rate is the same."""
    recipe = read(name)
    length = 10
    batch = recipe.train_dataloader.batch_size
    scaled = set_epochs(recipe, epochs, images=8 * batch * length, processes=8)
    old, new = rates(recipe, length), rates(scaled, length)
    assert len(new) == epochs * length
    peak = recipe.optim_wrapper.optimizer.lr
    assert max(new) == pytest.approx(max(old), rel=0.01)
    for share in range(0, 100, 2):
        ours, theirs = (curve[len(curve) * share // 100] for curve in (new, old))
        assert ours == pytest.approx(theirs, abs=tolerance * peak), share
    assert new[-1] == pytest.approx(recipe.param_scheduler[-1].eta_min, rel=0.2)


@pytest.mark.parametrize("name", [SEG, LSJ])
def test_curve_of_a_recipe_in_iterations(name):
    """N epochs of the data, in which each image is seen once an epoch."""
    recipe = read(name)
    recipe.train_cfg.max_iters = length = 2000
    points = recipe.param_scheduler
    factor = 2000 / (160000 if name == SEG else 184375)
    points[0].end = round(points[0].end * factor)
    if name == SEG:
        points[1].update(begin=points[0].end, end=length)
    else:
        points[1].milestones = [round(point * factor) for point in points[1].milestones]
    batch = recipe.train_dataloader.batch_size
    base = recipe.auto_scale_lr.base_batch_size
    scaled = set_epochs(recipe, 20, images=50 * base, processes=base // batch)
    assert scaled.train_cfg == dict(type="EpochBasedTrainLoop", max_epochs=20, val_interval=20)
    assert scaled.train_dataloader.sampler.type == "DefaultSampler"
    assert scaled.log_processor.by_epoch and scaled.default_hooks.checkpoint.by_epoch
    old, new = rates(recipe), rates(scaled, 50)
    assert len(new) == 1000 and max(new) == pytest.approx(max(old))
    for share in chain(range(2, 88), range(90, 95), range(98, 100)):
        ours, theirs = (curve[len(curve) * share // 100] for curve in (new, old))
        assert ours == pytest.approx(theirs, abs=0.02 * max(old)), share


def test_warm_up_in_iterations_of_a_recipe_in_epochs():
    """Mask R-CNN's 1,000 iterations are kept, or a tenth of the training."""
    recipe = read(DET)
    long = set_epochs(recipe, 6, images=40_000, processes=8)  # 2,500 iterations an epoch
    warm_up, steps = long.param_scheduler
    assert (warm_up.begin, warm_up.end, warm_up.start_factor) == (0, 1000, 0.001)
    assert (steps.begin, steps.end, steps.milestones) == (0, 15000, [10000, 13750])
    assert not warm_up.by_epoch and not steps.by_epoch
    short = set_epochs(recipe, 6, images=100)
    assert short.param_scheduler[0].end == 30 and short.param_scheduler[1].milestones == [200, 275]
    curve = rates(short, 50)
    assert curve[30] == pytest.approx(1e-4 * 2 / 16) and curve[-1] == pytest.approx(1e-6 * 2 / 16)


def test_warm_up_without_room_is_left_out():
    """A linear schedule of a single iteration would leave the rate at its start."""
    scaled = set_epochs(read(IN1K), 1, images=128 * 8)
    assert [schedule.type for schedule in scaled.param_scheduler] == ["mmvssm.CosineAnnealingLR"]
    curve = rates(scaled, 8)
    assert curve[1] == pytest.approx(1e-3 / 8) and all(a >= b for a, b in pairwise(curve))


def test_rate_follows_the_batch():
    recipe = read(IN1K)
    scaled = set_epochs(recipe, 30, images=10_000, processes=2)
    assert scaled.optim_wrapper.optimizer.lr == pytest.approx(1e-3 / 4)
    # a bound above the rate would let it rise
    assert scaled.param_scheduler[1].eta_min == pytest.approx(1e-5 / 4)
    assert scaled.auto_scale_lr == dict(base_batch_size=256, enable=False)
    chosen = set_epochs(recipe, 30, images=10_000, processes=2, rate=5e-4)
    assert chosen.optim_wrapper.optimizer.lr == 5e-4
    assert chosen.param_scheduler[1].eta_min == pytest.approx(5e-6)
    # the recipe itself is unchanged
    assert recipe.optim_wrapper.optimizer.lr == 1e-3 and recipe.train_cfg.max_epochs == 300


@pytest.mark.parametrize(
    ("images", "processes", "batch", "iterations"),
    [
        (1000, 1, 128, 8),
        (100, 1, 100, 1),
        (129, 1, 128, 1),  # the last batch would be of one image
        (257, 2, 128, 1),
        (3, 8, 1, 1),
        (258, 1, 128, 3),
    ],
)
def test_batches_fit_the_data(images, processes, batch, iterations):
    scaled = set_epochs(read(IN1K), 5, images, processes)
    assert scaled.train_dataloader.batch_size == batch
    assert scaled.param_scheduler[-1].end == 5 * iterations
    if processes == 1:
        loader = dict(
            scaled.train_dataloader,
            dataset=TensorDataset(torch.zeros(images)),
            num_workers=0,
            collate_fn=dict(type="default_collate"),
        )
        loader.pop("persistent_workers", None)
        assert len(Runner.build_dataloader(loader, seed=0)) == iterations


def test_repeated_augmentation_needs_no_minimum():
    """Vim's sampler picks as many images as there are."""
    scaled = set_epochs(read("vim/vim-tiny_8xb128_in1k"), 2, images=30)
    loader = dict(scaled.train_dataloader, dataset=TensorDataset(torch.zeros(30)), num_workers=0)
    assert len(Runner.build_dataloader(loader, seed=0)) == 1


@pytest.mark.parametrize(
    ("iterations", "momentum"), [(400_000, 1e-4), (400, 0.05), (40, 0.5), (2, 0.5)]
)
def test_averages_remember_a_twentieth(iterations, momentum):
    scaled = set_epochs(read(IN1K), 2, images=64 * iterations)
    (hook,) = scaled.custom_hooks
    assert hook.momentum == pytest.approx(momentum) and hook.interval == 1


def test_averages_at_intervals():
    recipe = read(IN1K)
    recipe.custom_hooks[0].update(interval=100, begin_epoch=30)
    hook = set_epochs(recipe, 20, images=128 * 200).custom_hooks[0]
    # 4,000 iterations, of which 200 are remembered: two updates
    assert (hook.interval, hook.momentum, hook.begin_epoch) == (100, 0.5, 2)
    hook = set_epochs(recipe, 20, images=128 * 4).custom_hooks[0]
    assert (hook.interval, hook.momentum) == (2, 0.5)


def test_what_hooks_count_in_epochs_is_scaled():
    recipe = read(DET)
    recipe.custom_hooks = [
        dict(type="mmdet.PipelineSwitchHook", switch_epoch=10, switch_pipeline=[]),
        dict(type="YOLOXModeSwitchHook", num_last_epochs=2),
        dict(type="SwitchRecipeHook", schedule=[dict(action_epoch=6), dict(action_epoch=9)]),
    ]
    hooks = set_epochs(recipe, 6, images=1000).custom_hooks
    assert (hooks[0].switch_epoch, hooks[1].num_last_epochs) == (5, 1)
    assert [action.action_epoch for action in hooks[2].schedule] == [3, 4]


def test_intervals():
    recipe = read(DET)
    recipe.train_cfg.update(val_interval=3, dynamic_intervals=[(9, 1)])
    recipe.default_hooks.checkpoint.interval = 6
    scaled = set_epochs(recipe, 4, images=1000)
    assert (scaled.train_cfg.val_interval, scaled.default_hooks.checkpoint.interval) == (1, 2)
    assert scaled.train_cfg.dynamic_intervals == [(3, 1)]
    assert scaled.default_hooks.checkpoint.max_keep_ckpts == 3
    by_iterations = set_epochs(read(SEG), 50, images=200)  # ten times in all, as the recipe
    assert by_iterations.train_cfg.val_interval == 5
    assert by_iterations.default_hooks.checkpoint.interval == 5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (dict(type="StepLR", step_size=4), dict(step_size=2000)),
        (dict(type="ExponentialLR", gamma=0.5), dict(gamma=0.5 ** (12 / 6000))),
        (dict(type="CosineRestartLR", periods=[6, 6]), dict(periods=[3000, 3000])),
        (dict(type="OneCycleLR", eta_max=0.1, total_steps=9), dict(total_steps=4500)),
        (dict(type="ConstantLR", factor=0.1, end=4), dict(begin=0, end=1501)),
        (dict(type="PolyLR", power=2, eta_min=1e-6), dict(end=6000, eta_min=1.25e-7)),
        (dict(type="CosineAnnealingLR", T_max=6), dict(T_max=3000)),
    ],
)  # fmt: skip
def test_schedules_of_other_recipes(schedule, expected):
    recipe = read(DET)
    recipe.param_scheduler = schedule
    (scaled,) = set_epochs(recipe, 6, images=2000).param_scheduler
    assert not scaled.by_epoch
    for name, value in expected.items():
        assert scaled[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"param_scheduler.1.type": "ReduceOnPlateauLR"}, r"scheduler\.1 \(ReduceOnPlateauLR\)"),
        ({"param_scheduler.1.by_epoch": False}, "counts iterations, but train_cfg epochs"),
        ({"train_cfg.type": "OtherLoop"}, "train_cfg.type must be .* got 'OtherLoop'"),
    ],
)  # fmt: skip
def test_unknown_shares_are_refused(settings, message):
    recipe = read(DET)
    recipe.merge_from_dict(settings)
    with pytest.raises(ValueError, match=message):
        set_epochs(recipe, 6, images=100)


def test_numbers_must_be_positive():
    for numbers in ((0, 5, 1), (5, 0, 1), (5, 5, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            set_epochs(read(DET), *numbers)


def test_shortened_by_hand_is_told_the_keys():
    """A stock script builds the schedules last, so this is the error that it ends with."""
    recipe = read(IN1K)
    recipe.train_cfg.max_epochs = 2
    keys = r"lower param_scheduler\.0\.end .* param_scheduler\.1\.begin"
    with pytest.raises(ValueError, match=keys):
        rates(recipe, 9)
    recipe.param_scheduler[1].convert_to_iter_based = False
    with pytest.raises(ValueError, match=keys):
        rates(recipe, 9)
    with pytest.raises(ValueError, match=r"^param_scheduler\.1 \(CosineAnnealingLR\) begins at 20"):
        check_length(recipe)
    recipe.param_scheduler[0].end, recipe.param_scheduler[1].begin = 2, 1
    assert check_length(recipe) is None and len(rates(recipe, 9)) == 18


@pytest.mark.parametrize(
    ("name", "length", "place"),
    [
        ("vim/vim-tiny_8xb128_in1k", dict(max_epochs=20), r"param_scheduler\.2 .* ends at 301"),
        (DET, dict(max_epochs=6), r"param_scheduler\.1 .* ends at 12"),
        (SEG, dict(max_iters=1000), r"param_scheduler\.1 .* ends at 160000"),
    ],
)
def test_schedule_that_is_cut_off_is_noted(name, length, place):
    recipe = read(name)
    assert check_length(recipe) is None
    recipe.train_cfg.update(length)
    assert re.match(place, check_length(recipe))


def test_constant_warm_up_in_steps_leaves_no_gap():
    """Vim's waits an epoch, then rises for five: no iteration in between has the full rate."""
    recipe = read("vim/vim-tiny_8xb128_in1k")
    scaled = set_epochs(recipe, 60, images=8 * 128 * 10, processes=8)
    curve = rates(scaled, 10)
    top = curve.index(max(curve))
    assert top == pytest.approx(12, abs=1) and curve[0] == pytest.approx(1e-6)
    assert curve[: top + 1] == sorted(curve[: top + 1])
    for epochs, images in ((1, 300), (2, 1000), (7, 256), (30, 128)):
        short = set_epochs(recipe, epochs, images=images)
        curve = rates(short, -(-images // 128))
        assert max(curve) >= 0.5 * short.optim_wrapper.optimizer.lr, (epochs, images)
