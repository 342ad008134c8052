"""Released weights by name in stock scripts, our tools and inferencers, as a new user would."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmvssm
from abilities import without_noise
from forked import run_program
from mmvssm.families import arch_names
from mmvssm.families.key_map import KeyMap
from mmvssm.hub import Address, released_files
from verifier import Case

ROOT = Path(__file__).parents[2]
DETECTOR = "mask-rcnn_vmamba-v0-tiny_fpn_1x_coco"
SEGMENTOR = "vmamba-v0-tiny_upernet_4xb4-160k_ade20k-512x512"
CLASSIFY = """
_base_ = __import__('mmvssm').config_path('local_vim/local-vim-tiny_8xb128_in1k.py')
test_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root='photos',
        pipeline={{_base_.test_dataloader.dataset.pipeline}},
    ),
)
test_evaluator = dict(type='Accuracy', topk=(1, 5))
"""
# small images, so that the models run fast
DETECT = f"""
_base_ = __import__('mmvssm').config_path('vmamba/{DETECTOR}.py')
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                          'scale_factor')),
]))
"""
SEGMENT = f"""
_base_ = __import__('mmvssm').config_path('vmamba/{SEGMENTOR}.py')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackSegInputs'),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""
GET_MODEL = """
import mmvssm, torch
model = mmvssm.get_model('local-vim-tiny_8xb128_in1k', pretrained=True)
print(tuple(model(torch.rand(1, 3, 224, 224)).shape))
"""
INFER = f"""
import json
import cv2, numpy as np
from mmdet.apis import DetInferencer
from mmpretrain import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer

image = cv2.imread('photos/cat/0.png')
(top,) = ImageClassificationInferencer(
    'classify.py', 'mmvssm://local-vim-tiny', device='cpu'
)(image)
boxes = DetInferencer('detect.py', 'mmvssm://{DETECTOR}', device='cpu')(image)['predictions'][0]
maps = MMSegInferencer('segment.py', 'mmvssm://{SEGMENTOR}', device='cpu')(image)['predictions']
with open('seen.json', 'w') as file:
    json.dump(dict(boxes=len(boxes['bboxes']), maps=np.shape(maps), score=top['pred_score']), file)
"""


def serve(server, name, content):
    """Put a file on the mirror, at the path that the authors use."""
    _, file = released_files()[name]
    server.files[f"/{file.url.partition('://')[2]}"] = content


def to_bytes(folder, checkpoint):
    torch.save(checkpoint, folder / "made.pth")
    return (folder / "made.pth").read_bytes()


def random_weights(shapes):
    torch.manual_seed(0)
    return {
        key: torch.randn(shape) * 0.02 if dtype == "float32" else torch.zeros(shape)
        for key, shape, dtype in shapes
    }


@pytest.fixture
def user(server, tmp_path):
    """A fresh folder with four photographs, a config, and an environment with the mirror."""
    for name, shade in (("cat", 50), ("dog", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 50, (64, 80, 3)) + shade
            cv2.imwrite(str(tmp_path / "photos" / name / f"{i}.png"), noise.astype(np.uint8))
    for name, text in (("classify", CLASSIFY), ("detect", DETECT), ("segment", SEGMENT)):
        (tmp_path / f"{name}.py").write_text(text)
    listed = Case(ROOT / "tests/golden/local_mamba/keys/local_vim_tiny.json")
    weights = random_weights(listed.meta["state_dict"])
    serve(server, "local-vim-tiny", to_bytes(tmp_path, {"state_dict": weights}))

    env = {
        **os.environ,
        "MMVSSM_HOME": str(tmp_path / "home"),
        "MMVSSM_MIRROR": server.url,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }

    def start(*command):
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(*command, status=0):
        returned, said = run_program(command, tmp_path, env)
        assert returned == status, said[-4000:]
        return said

    run.folder, run.start = tmp_path, start
    return run


def ended(process):
    said, _ = process.communicate()
    assert process.returncode == 0, said[-4000:]
    return said


def script(library, name):
    return Path(importlib.util.find_spec(library).origin).parent / ".mim" / "tools" / name


def accuracies(folder):
    return [
        json.loads(path.read_text())["accuracy/top5"]
        for path in sorted(folder.glob("out/**/*.json"))
        if "accuracy" in path.read_text()
    ]


def test_test_scripts(user, server):
    """A stock script runs alongside another process; our tool then works without the server."""
    address = "mmvssm://local-vim-tiny"
    test = user.start(script("mmpretrain", "test.py"), "classify.py", address, "--work-dir", "out")
    other = user.start("-c", GET_MODEL)
    said, also = ended(test), ended(other)
    assert "accuracy/top5" in said and "do not match" not in said and "(1, 1000)" in also
    # one of the two has downloaded and converted
    assert (
        len(server.requests) == 1
        and len(re.findall("took .*local_vim_tiny.ckpt", said + also)) == 1
    )
    server.shutdown()
    server.server_close()
    tool = ROOT / "tools" / "test.py"
    again = user(tool, "classify.py", address, "--work-dir", "out")
    assert "accuracy/top5" in again and "do not match" not in again
    first, second = accuracies(user.folder)
    assert first == second
    # other weights need the server: a one-sentence error, before any work
    lost = user(tool, "classify.py", "mmvssm://local-vim-tiny-mid-cls", status=1)
    assert without_noise(lost).strip().count("\n") == 0 and "the server cannot be reached" in lost
    assert "local_vim_tiny_middle_cls_token.ckpt by hand" in lost


def test_inferencers(user, server):
    expected = {}
    for name in (DETECTOR, SEGMENTOR):
        family, _ = released_files()[name]
        expected[name] = mmvssm.get_model(name).state_dict()
        weights = KeyMap(family, "dense").to_original(expected[name])
        serve(server, name, to_bytes(user.folder, {"meta": {}, "state_dict": weights}))
    (user.folder / "infer.py").write_text(INFER)
    said = user("infer.py")
    assert "do not match" not in said
    seen = json.loads((user.folder / "seen.json").read_text())
    assert seen["maps"] == [64, 80] and 0 < seen["score"] <= 1 and "boxes" in seen
    made = user.folder / "home" / "converted" / f"{DETECTOR}-{mmvssm.__version__}.pth"
    content = torch.load(made, weights_only=True)
    meta, weights = content["meta"], content["state_dict"]
    assert weights.keys() == expected[DETECTOR].keys()
    assert all(torch.equal(weights[key], value) for key, value in expected[DETECTOR].items())
    assert len(meta["dataset_meta"]["classes"]) == 80
    assert meta["mmvssm"]["content"] == "detector"


@pytest.mark.parametrize("library", ["mmpretrain", "mmdet", "mmseg"])
def test_get_model_and_list_models(library):
    names = {
        "mmpretrain": "efficient-vmamba-tiny_8xb128_in1k",
        "mmdet": "mask-rcnn_msvmamba-nano_fpn_1x_coco",
        "mmseg": "efficient-vmamba-tiny_upernet_4xb4-160k_ade20k-512x512",
    }
    name = names[library]
    assert mmvssm.list_models(name) == [name] and name in mmvssm.list_models("*vmamba*")
    model = mmvssm.get_model(name, backbone=dict(frozen_stages=0))
    assert type(model).__module__.startswith(library) and not model.training
    assert model.backbone.frozen_stages == 0 and isinstance(model.cfg, Config)
    with pytest.raises(ValueError, match=f"got '{name}x'; closest: {name}"):
        mmvssm.get_model(f"{name}x")


def test_models_with_published_weights():
    published = mmvssm.list_models(pretrained=True)
    assert set(published) < set(mmvssm.list_models()) and DETECTOR in published
    assert "local-vim-small_8xb128_in1k" not in published


def test_every_row_of_the_zoo_has_a_command_that_works():
    page = (ROOT / "docs" / "model_zoo.md").read_text()
    rows = re.findall(r"^\| .*\.py\).*$", page, re.MULTILINE)
    assert len(rows) == len(mmvssm.list_models()) > 150
    for row in rows:
        tool, config, *weights = re.search(
            r"`python tools/(\w+)\.py ([^` ]+) ?(\S*)`", row
        ).groups()
        assert (ROOT / config).is_file() and Path(config).stem in mmvssm.list_models()
        (address,) = weights
        assert (tool == "test") == bool(address)
        if address:
            assert f"`{address}`" in row and Address.parse(address).name in released_files()


def test_names_in_pages_and_configs_exist():
    """A name without a file is that of an arch whose authors published no weights."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("configs/**/*.[mp][dy]")]
    names = {
        name: page
        for page in pages
        for name in re.findall(r"mmvssm://(?!NAME|FILE)([\w-]*\w)(?![\w./])", page.read_text())
    }
    assert len(names) > 70
    archs = {f"{family.prefix}-{arch}" for family, arch in arch_names().values()}
    unknown = {name: page.name for name, page in names.items() if name not in released_files()}
    assert unknown.keys() <= archs
    for name in re.findall(r'get_model\("([\w-]+)", pretrained=True\)', pages[0].read_text()):
        assert name in mmvssm.list_models(pretrained=True)
