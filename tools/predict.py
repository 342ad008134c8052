"""Run a classifier, detector or segmentor on images and videos; write pictures and JSON."""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2

import mmvssm  # noqa: F401  registers 'mmvssm::' bases before the config is read
from mmvssm.engine import cli
from mmvssm.engine.predict import Prediction, Predictor
from mmvssm.engine.predict_inputs import Source, find_sources, read_frames
from mmvssm.files import atomic_write, temporary_sibling
from mmvssm.progress import step_bar

EXAMPLES = """examples:
  released weights on a folder of images:
    python tools/predict.py configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py \\
        mmvssm://vmamba-tiny-s1l8 photos/ -o out
  your own checkpoint, averaged over flips, 8 images at a time:
    python tools/predict.py CONFIG work_dirs/NAME/epoch_12.pth 'photos/**/*.jpg' -o out \\
        --tta --batch-size 8
  a video:
    python tools/predict.py CONFIG CHECKPOINT street.mp4 -o out --device cuda

DIR/predictions.json has all results; pictures are in DIR/pictures, label maps of segmentors in
DIR/maps. No code of the checkpoint is run.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint file or mmvssm://NAME")
    parser.add_argument(
        "inputs",
        metavar="IMAGE",
        nargs="+",
        help="images, videos, folders of them, or quoted patterns such as 'photos/**/*.jpg'",
    )
    parser.add_argument(
        "-o", "--out", metavar="DIR", required=True, help="folder for results, created if needed"
    )
    parser.add_argument(
        "--device", help="device, such as cpu or cuda:1 (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over augmented views, those of tta_model and tta_pipeline of the config; "
        "default in classification and detection: the image and its mirror image",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="largest number of images per batch (default: 1)",
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="drop a detector's instances with scores of at most this (default: 0.3)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write only JSON and maps")
    cli.add_config_arguments(parser)
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    return args


class Results:
    """Writer of the results: pictures, maps, and the entries of the JSON file."""

    def __init__(self, folder: Path, predictor: Predictor, pictures: bool) -> None:
        self.folder, self.predictor, self.pictures = folder, predictor, pictures
        self.broken: list[dict[str, str]] = []

    def add_broken(self, source: Source, error: OSError) -> None:
        """Record an image or video that cannot be read."""
        reason = error.strerror or str(error)
        self.broken.append(dict(path=str(source.path), reason=reason))

    def save_image(self, prediction: Prediction) -> dict[str, Any]:
        """Write the picture and map of an image, and return its entry for the JSON."""
        source = prediction.key
        entry = dict(path=str(source.path), **self.predictor.describe(prediction))
        if self.pictures:
            drawn = self.predictor.draw(prediction)
            entry["picture"] = self._write(f"pictures/{source.stem}.png", drawn)
        entry.update(self.save_map(prediction, source.stem))
        return entry

    def save_map(self, prediction: Prediction, stem: str) -> dict[str, str]:
        """Write the label map of a segmentor's prediction."""
        labels = self.predictor.label_map(prediction)
        return {} if labels is None else dict(map=self._write(f"maps/{stem}.png", labels))

    def _write(self, name: str, image: Any) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _, content = cv2.imencode(".png", image)
        atomic_write(path, lambda part: part.write_bytes(content))
        return name

    def save_video(self, source: Source) -> dict[str, Any]:
        """Predict all frames of a video, and return its entry for the JSON.

        Raises:
            OSError: If it cannot be read.
        """
        fps, count, frames = read_frames(source.path)
        images = ((number, str(source.path), frame) for number, frame in enumerate(frames))
        entry: dict[str, Any] = dict(path=str(source.path), fps=fps, frames=[])
        path = self.folder / "pictures" / f"{source.stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            advance = stack.enter_context(step_bar(source.path.name, count))
            part = stack.enter_context(temporary_sibling(path))
            writer = None
            for prediction in self.predictor.predict(images):
                frame = self.predictor.describe(prediction)
                frame.update(self.save_map(prediction, f"{source.stem}/{prediction.key:06d}"))
                entry["frames"].append(frame)
                if self.pictures:
                    height, width = prediction.image.shape[:2]
                    # drawing a class may change the size of the picture
                    drawn = cv2.resize(self.predictor.draw(prediction), (width, height))
                    if writer is None:
                        code = cv2.VideoWriter_fourcc(*"mp4v")
                        writer = cv2.VideoWriter(str(part), code, fps, (width, height))
                    writer.write(drawn)
                advance(1)
            if not entry["frames"]:
                raise OSError("it has no readable frame")
            if writer is not None:
                writer.release()
                part.replace(path)
                entry["picture"] = f"pictures/{source.stem}.mp4"
        return entry


def read_images(sources: list[Source], results: Results) -> Iterator[tuple[Source, str, Any]]:
    """Read all images, and record those that cannot be read."""
    for source in sources:
        try:
            image = results.predictor.read(str(source.path))
        except OSError as error:
            results.add_broken(source, error)
        else:
            yield source, str(source.path), image


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args.config, args.cfg_options, args.option)
    sources = find_sources(args.inputs)
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        cli.fail(f"-o must name a folder, but {args.out!r} is a file")
    predictor = Predictor(
        cfg,
        args.checkpoint,
        config_path=args.config,
        device=cli.choose_device(args.device),
        tta=args.tta,
        batch_size=args.batch_size,
        score_thr=args.score_thr,
    )
    results = Results(folder, predictor, not args.no_pictures)
    folder.mkdir(parents=True, exist_ok=True)
    images, videos = [], []
    pictures = [source for source in sources if not source.is_video]
    with step_bar("images", len(pictures)) as advance:
        for prediction in predictor.predict(read_images(pictures, results)):
            images.append(results.save_image(prediction))
            advance(1)
    for source in sources:
        if source.is_video:
            try:
                videos.append(results.save_video(source))
            except OSError as error:
                results.add_broken(source, error)
    content = dict(
        config=args.config,
        checkpoint=args.checkpoint,
        classes=predictor.classes,
        images=images,
        videos=videos,
        broken=results.broken,
    )
    atomic_write(
        folder / "predictions.json", lambda part: part.write_text(json.dumps(content, indent=1))
    )
    print(f"predicted {len(images)} images and {len(videos)} videos: {folder}")
    if results.broken:
        names = "; ".join(f"{item['path']}: {item['reason']}" for item in results.broken)
        cli.fail(f"{len(results.broken)} could not be read and were skipped: {names}")


if __name__ == "__main__":
    main()
