"""The configs agree with the recipes of the published models, listed in published.yml."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATA_SAMPLERS, MODELS, init_default_scope
from mmpretrain.datasets import RandAugment
from torch.nn.modules.batchnorm import _BatchNorm

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yml").read_text())
DROP_PATH = yaml.safe_load((Path(__file__).parent / "drop_path.yml").read_text())
PIPELINES = {name: f"{name}_dataloader.dataset.pipeline" for name in ("train", "val", "test")}
RECIPES = [
    pytest.param(group, model, file.format(model), id=file.format(model))
    for group in PUBLISHED["groups"]
    for model in group["models"]
    for file in group["files"]
]


@cache
def load(name):
    (file,) = CONFIGS.glob(f"*/{name}.py")
    return Config.fromfile(file)


def look_up(node, names):
    """Return the value at a path, see published.yml; None if it is absent."""
    if node is None or not names:
        return node
    name, *rest = names
    if isinstance(node, Mapping):
        return look_up(node.get(name), rest)
    if name == "*":
        return [look_up(item, rest) for item in node]
    if name.isdigit():
        return look_up(node[int(name)] if int(name) < len(node) else None, rest)
    return look_up(next((item for item in node if item["type"] == name), None), rest)


def at(cfg, path):
    first, *rest = path.split(".")
    return look_up(cfg._cfg_dict, [*PIPELINES.get(first, first).split("."), *rest])


def plain(value, **values):
    """Return a value as lists and dicts, with ``$name`` replaced and absent values removed."""
    if isinstance(value, Mapping):
        items = {key: plain(item, **values) for key, item in value.items() if key != "_scope_"}
        return {key: item for key, item in items.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item, **values) for item in value]
    if isinstance(value, str) and value.startswith("$"):
        return values.get(value[1:])
    return pytest.approx(value, rel=1e-9) if values and isinstance(value, float) else value


def values_of(group, model):
    """Return the values of each ``$name`` in the facts of a model."""
    values = dict(group["models"][model])
    family = max((f for f in PUBLISHED["types"] if model.startswith(f"{f}-")), key=len)
    values.update(type=PUBLISHED["types"][family], arch=model.removeprefix(f"{family}-"))
    values.setdefault("start", f"mmvssm://{model}")
    if "drop_path" in group:
        values["drop_path"] = DROP_PATH[group["drop_path"]]["rates"][family][values["arch"]]
    values["widths"] = [values.get("width", 0) * factor for factor in (1, 2, 4, 8)]
    return values


@pytest.mark.parametrize(("group", "model", "name"), RECIPES)
def test_recipe(group, model, name, learning_rates):
    cfg, values = load(name), values_of(group, model)
    assert group["source"]
    for path, expected in group.get("facts", {}).items():
        assert plain(at(cfg, path)) == plain(expected, **values), path
    for other, paths in values.get("same_as", {}).items():
        assert [at(cfg, path) for path in paths] == [at(load(other), path) for path in paths]
    if rates := dict(values.get("rates", group.get("rates", {}))):
        found = learning_rates(cfg, rates.pop("epoch"), list(rates))
        for step, expected in rates.items():
            if isinstance(expected, list):
                assert expected[0] <= found[step] <= expected[1], step
            else:
                assert found[step] == pytest.approx(expected), step
    if rule := values.get("parameters", group.get("parameters")):
        check_parameters(cfg, rule)


def check_parameters(cfg, rule):
    """Compare learning rate and weight decay of every parameter with a rule."""
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    # mixed precision does not affect the groups, and needs a GPU
    options = dict(cfg.optim_wrapper, type="OptimWrapper")
    groups = build_optim_wrapper(model, options).optimizer.param_groups
    by_id = {id(parameter): group for group in groups for parameter in group["params"]}
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.backbone.named_modules(prefix="backbone")
        if isinstance(module, (torch.nn.LayerNorm, _BatchNorm))
        for name, _ in module.named_parameters()
    }
    decays = {}
    for name, parameter in model.named_parameters():
        rate, decays[name] = (by_id[id(parameter)][key] for key in ("lr", "weight_decay"))
        spared = (
            ("vectors" in rule["spared"] and parameter.ndim == 1)
            or ("norms" in rule["spared"] and name in norms)
            or any(re.search(p, name) for p in rule["spared"] if p not in ("vectors", "norms"))
        )
        full = cfg.optim_wrapper.optimizer.weight_decay
        if name.startswith("backbone.") or "norms" not in rule["spared"]:
            assert decays[name] == pytest.approx(0 if spared else full), name
        assert decays[name] in (0.0, pytest.approx(full)), name
        embeds = name.startswith(("backbone.patch_embed.", "backbone.pos_embed"))
        factor = rule.get("embedding", 1) if embeds else 1
        if "layer_decay" in rule:
            last = model.backbone.num_layers + 1
            layer = re.match(r"backbone\.layers\.(\d+)\.", name)
            depth = 0 if embeds else int(layer[1]) + 1 if layer else last
            factor = rule["layer_decay"] ** (last - depth)
        assert rate == pytest.approx(cfg.optim_wrapper.optimizer.lr * factor), name
    for key, acts in (("acts_on", True), ("spares", False)):
        for leaf in rule.get(key, ()):
            same = [name for name in decays if f".{name}".endswith(f".{leaf}")]
            assert {decays[name] > 0 for name in same} == {acts}, leaf


@pytest.mark.parametrize("task", DROP_PATH)
def test_drop_path_of_every_network(task):
    assert DROP_PATH[task]["source"]
    for family, rates in DROP_PATH[task]["rates"].items():
        for file in DROP_PATH[task]["files"]:
            for arch, rate in rates.items():
                backbone = load(file.format(f"{family}-{arch}")).model.backbone
                assert (backbone.arch, backbone.drop_path_rate) == (arch, rate)
            pattern = file.format(f"{family}-[^_]+")
            names = [path.stem for path in CONFIGS.glob("*/*.py")]
            assert sum(bool(re.fullmatch(pattern, name)) for name in names) == len(rates)


@pytest.mark.parametrize("name", ["local-vmamba-tiny_8xb128_in1k", "local-vim-small_8xb128_in1k"])
def test_policies_that_do_not_increase(name):
    """What timm's `rand-m9` does at level 9: threshold 230, 3 bits, enhanced by 1.72."""
    init_default_scope("mmpretrain")
    step = at(load(name), "train.RandAugment")
    options = {key: value for key, value in step.items() if key not in ("type", "_scope_")}
    stock = RandAugment(**dict(options, policies="timm_increasing")).policies
    ours = RandAugment(**dict(options, magnitude_std=0.0))
    assert [policy["type"] for policy in ours.policies] == [policy["type"] for policy in stock]
    differ = {"Posterize", "Solarize", "ColorTransform", "Contrast", "Brightness", "Sharpness"}
    for policy, other in zip(ours.policies, stock):
        same = policy.get("magnitude_range") == other.get("magnitude_range")
        assert same == (policy["type"] not in differ)
    magnitudes = {
        policy["type"]: transform.random_magnitude()
        for policy, transform in zip(ours.policies, ours)
        if policy["type"] in differ
    }
    assert magnitudes.pop("Posterize") == pytest.approx(2.6)  # rounded up to 3 bits
    assert magnitudes.pop("Solarize") == pytest.approx(230.4)
    assert all(value == pytest.approx(0.72) for value in magnitudes.values())
    enhancing = [p for p in ours.policies if p.get("magnitude_range") == (-0.9, 0.9)]
    assert [policy["random_negative_prob"] for policy in enhancing] == [0.0] * 4


def test_images_are_repeated_for_vim():
    init_default_scope("mmpretrain")
    loader = load("vim-tiny_8xb128_in1k").train_dataloader
    sampler = DATA_SAMPLERS.build(dict(loader.sampler, dataset=range(30), seed=0))
    assert sorted(sampler) == sorted(3 * list(set(sampler))) and len(sampler) == 30


def test_nothing_is_downloaded():
    """No address of weights is left from the configs that ours inherit."""
    plain_models = {path.stem for path in CONFIGS.glob("*vim/*.py")}
    for name in {recipe.values[2] for recipe in RECIPES} | plain_models:
        text = str(load(name).to_dict())
        assert "http" not in text and ".pth" not in text, name
