"""Build a network of another OpenMMLab library with a backbone of this package, and run it.

Run by ``make matrix`` for its last rows; by hand::

    python .dev/other_libraries.py mmpose --folder build/matrix/mmpose

Each library gets its own environment on top of the running one, and is installed without its
dependencies, because it requires older versions of them. The config is the library's own, with
another backbone. Prints a JSON object with the library's version and the shapes of the outputs.
"""

from __future__ import annotations

import argparse
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Library:
    """How to install and test a library.

    Args:
        requirements: What pip installs, without dependencies; the first is the library.
        module: Name that it is imported by.
        config: A config of the library, relative to its folder of configs.
        code: Code that uses ``cfg``, ``MODELS`` and ``backbone``, and sets ``result``.
        compiled: Requirements that must be compiled, for numpy 2.
    """

    requirements: tuple[str, ...]
    module: str
    config: str
    code: str
    compiled: tuple[str, ...] = ()


LIBRARIES = {
    "mmpose": Library(
        ("mmpose==1.3.2", "json_tricks", "munkres"),
        "mmpose",
        "body_2d_keypoint/topdown_heatmap/coco/td-hm_swin-t-p4-w7_8xb32-210e_coco-256x192.py",
        """
cfg.model.backbone = dict(backbone, out_indices=(3,))
model = MODELS.build(cfg.model).eval()
result = model(torch.rand(1, 3, 256, 192), None)
""",
        compiled=("xtcocotools",),
    ),
    "mmdet3d": Library(
        (
            *("mmdet3d==1.4.0", "numba", "llvmlite", "nuscenes-devkit", "lyft_dataset_sdk"),
            *("fire", "pyquaternion", "plyfile", "trimesh", "cachetools"),
        ),
        "mmdet3d",
        "fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d.py",
        """
cfg.model.backbone = dict(backbone, out_indices=(0, 1, 2, 3))
cfg.model.neck.in_channels = [96, 192, 384, 768]
model = MODELS.build(cfg.model).eval()
result = model.bbox_head(model.extract_feat(dict(imgs=torch.rand(1, 3, 128, 192))))[0]
""",
    ),
    # mmaction2 1.1.0 refuses mmcv 2.1, and the wheel of 1.2.0 lacks a module
    "mmaction2": Library(
        ("mmaction2==1.1.0", "mmcv-lite==2.0.1", "decord"),
        "mmaction",
        "recognition/tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.py",
        """
from mmvssm.models import VMamba

@MODELS.register_module()
class LastMapVMamba(VMamba):  # TSN takes one map, not a tuple
    def forward(self, x):
        return super().forward(x)[-1]

cfg.model.backbone = dict(backbone, type="LastMapVMamba", out_indices=(3,))
cfg.model.cls_head.in_channels = 768
model = MODELS.build(cfg.model).eval()
result = model(torch.rand(1, 8, 3, 64, 64), mode="tensor", stage="head")
""",
    ),
}
#: The program around the code of a library.
FRAME = """
import json, sys
from importlib import import_module
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

module = import_module({module!r})
folder = Path(module.__file__).parent / ".mim" / "configs"
cfg = Config.fromfile(folder / {config!r})
init_default_scope({module!r})
MODELS = import_module({module!r} + ".registry").MODELS
backbone = dict(type="mmvssm.VMamba", arch="tiny-s1l8")
with torch.no_grad():
{code}
shapes = [list(t.shape) for t in (result if isinstance(result, (list, tuple)) else [result])]
print(json.dumps(dict(version=module.__version__, shapes=shapes)))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--folder", type=Path, required=True, help="where its environment goes")
    args = parser.parse_args()
    library = LIBRARIES[args.library]
    python = install(library, args.folder)
    code = "".join(f"    {line}\n" for line in library.code.strip().splitlines())
    program = FRAME.format(module=library.module, config=library.config, code=code)
    return subprocess.run([python, "-W", "ignore", "-c", program]).returncode


def install(library: Library, folder: Path) -> Path:
    """Install a library in an environment of its own; return its Python."""
    python = folder / "env" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    (own,) = (folder / "env" / "lib").glob("python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (own / "running_environment.pth").write_text("".join(lines))
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *library.requirements], check=True, stdout=sys.stderr)
    for name in library.compiled:
        options = ["--no-build-isolation", "--no-binary", name]
        subprocess.run([*pip, *options, name], check=True, stdout=sys.stderr)
    return python


if __name__ == "__main__":
    sys.exit(main())
