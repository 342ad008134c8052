"""Size and speed of exported models in ONNX Runtime, beside the same models in PyTorch.

Each model has random weights and is exported for all sizes, as tools/export.py does. Of a detector
backbone, neck and dense head run in both. PyTorch runs once with the scan that is installed and
once with the PyTorch scan, taking turns with ONNX Runtime; on one thread, of which the processor
time is taken.

    python benchmarks/export.py --out export.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from mmvssm import ops
from mmvssm.analysis.timing import machine
from mmvssm.engine import cli
from mmvssm.engine.export import Exported, plan_export, trace, write_onnx
from mmvssm.files import atomic_write
from mmvssm.zoo import build_model

ROOT = Path(__file__).resolve().parents[1]
#: Config and image size of each model.
MODELS = {
    "demo/vmamba-micro_digits-cls": (64, 64),
    "vmamba/vmamba-tiny-s1l8_8xb128_in1k": (224, 224),
    "efficient_vmamba/efficient-vmamba-tiny_8xb128_in1k": (224, 224),
    "local_vim/local-vim-tiny_8xb128_in1k": (224, 224),
    "vmamba/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco": (512, 512),
    "vmamba/vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512": (512, 512),
}


def compare(name: str, size: tuple[int, int], repetitions: int) -> dict:
    """Export a model of a config, and time it at an image size in all three ways."""
    cfg = cli.load_config(str(ROOT / "configs" / f"{name}.py"), {})
    library = cli.library_of(cfg, "export")
    model = build_model(cfg).eval()
    plan = plan_export(model, library, None)
    module = Exported(model, library).eval()
    image = torch.rand(1, 3, *size) * 255
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        outputs = module(image)
        program = trace(module, plan)
        write_onnx(program, module.output_names(outputs, len(model.extract_feat(image))), path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
        feed = {"image": np.asarray(image)}
        ways = {
            "ONNX Runtime": lambda: session.run(None, feed),
            "PyTorch": lambda: module(image),
            "PyTorch scan": lambda: module(image),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(repetitions + 1):
            for way, run in ways.items():
                with ops.backend("torch") if way == "PyTorch scan" else nullcontext():
                    started = time.process_time()
                    run()
                    if turn:  # the first warms up
                        times[way].append(time.process_time() - started)
        difference = max(
            float(np.abs(got - wanted.numpy()).max() / wanted.abs().max())
            for got, wanted in zip(session.run(None, feed), outputs)
        )
        read = {
            node.name for node in program.graph.nodes if node.op == "placeholder" and node.users
        }
        targets = [s.target for s in program.graph_signature.input_specs if s.arg.name in read]
        used = sum(program.state_dict[t].nbytes for t in targets if t in program.state_dict)
        return {
            "model": name,
            "size": size,
            "file_mib": round(path.stat().st_size / 2**20, 1),
            "weights_mib": round(used / 2**20, 1),
            "difference": difference,
            "median_ms": {way: round(1e3 * statistics.median(t), 1) for way, t in times.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "export.json")
    parser.add_argument("--only", choices=MODELS, help="one model (default: all)")
    parser.add_argument("--repetitions", type=int, default=7, help="runs of each (default: 7)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console, results = Console(highlight=False), []
    for name, size in MODELS.items():
        if args.only in (None, name):
            with console.status(f"{name}: exporting takes minutes"):
                results.append(compare(name, size, args.repetitions))
            console.print_json(json.dumps(results[-1]))
    versions = {"onnxruntime": onnxruntime.__version__}
    text = json.dumps({"machine": machine("cpu") | versions, "results": results}, indent=1)
    atomic_write(args.out, lambda part: part.write_text(text + "\n"))
    table = Table("model", "size", "file, MiB", "weights, MiB", *results[0]["median_ms"])
    for entry in results:
        sizes = [str(entry[key]) for key in ("file_mib", "weights_mib")]
        times = [f"{value} ms" for value in entry["median_ms"].values()]
        table.add_row(entry["model"], "{}x{}".format(*entry["size"]), *sizes, *times)
    console.print(table)


if __name__ == "__main__":
    main()
