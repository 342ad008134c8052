"""Write the tables of the model zoo from the metafiles, or check that they are up to date."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from mmvssm.families import FAMILIES, Released
from mmvssm.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path("docs", "model_zoo.md")
BEGIN = "<!-- Tables by tools/model_zoo.py from metafile.yml: change that file, run the tool. -->"
END = "<!-- End of the tables. -->"

DESCRIPTION = """\
Write the tables of the model zoo from the metafiles, or check that they are up to date.

The facts about a config (parameters, FLOPs, the authors' results and where they were published) are
stored in the metafile.yml of its folder, which MIM uses as well; the authors' weights are listed in
the family's declaration in mmvssm/families. From these, this tool generates the tables in
configs/*/README.md, between two comment lines, and all of docs/model_zoo.md.
"""
EXAMPLES = """\
after changing a metafile:
  python tools/model_zoo.py            write what has changed
  python tools/model_zoo.py --check    write nothing; exit status 1 if a page is out of date

For a new family, create a folder in configs with a metafile.yml that model-index.yml imports, and a
README.md with the two comment lines; if they are missing, this tool prints them.
"""
INTRODUCTION = """\
# Model zoo

<!-- Written by tools/model_zoo.py from configs/*/metafile.yml: do not edit. -->

This page lists every recipe of this package with its size, the published result, the released
weights and a command to start with. The page of each family says more about it.

- **Results** are those that the authors published, of models that they trained with their own code.
  *Source* says where: a table of the paper, a page of their repository, or the log of a training. A
  dash means that no number was published, or only one of another network, which the family's page
  names.
- **Weights**: `mmvssm://NAME` names the authors' file and works wherever MMEngine takes a
  checkpoint (see [weights](weights.md)). If the authors offer a file only on a page, the first run
  says what to save where.
- **Parameters** are those of the models as this package builds them. **FLOPs** count a
  multiply-accumulate as one, in each family's published convention or else in VMamba's, so they do
  not compare across families.
- **Commands** are run from a checkout of this repository.
"""
#: Allowed values of a result's ``Source``.
SOURCE = re.compile(
    r"paper(, table \d+)?( \(text\))?|README( (at|of branch) [\w#]+)?|[\w.]+\.md|log", re.ASCII
)
TEXT_NOTE = """
(text): taken from a text copy of the paper; no second source was found.
"""


class Column(NamedTuple):
    """A column of numbers: its title, and its names in metafiles."""

    title: str
    dataset: str
    metric: str


class Task(NamedTuple):
    """A table: its title, the training data of its configs, and its columns."""

    title: str
    data: str
    input_size: str
    columns: tuple[Column, ...]


TASKS = (
    Task(
        "ImageNet-1k classification",
        "ImageNet-1k",
        "224x224",
        (
            Column("Top-1", "ImageNet-1k", "Top 1 Accuracy"),
            Column("Top-5", "ImageNet-1k", "Top 5 Accuracy"),
        ),
    ),
    Task(
        "COCO detection and instance segmentation",
        "COCO",
        "1280x800",
        (
            Column("Box AP", "COCO", "box AP"),
            Column("Mask AP", "COCO", "mask AP"),
        ),
    ),
    Task(
        "ADE20K semantic segmentation",
        "ADE20K",
        "2048x512",
        (
            Column("mIoU", "ADE20K", "mIoU"),
            Column("mIoU, scales and flip", "ADE20K", "mIoU(ms+flip)"),
        ),
    ),
)
METHODS = {
    "mask-rcnn": "Mask R-CNN",
    "cascade-mask-rcnn": "Cascade Mask R-CNN",
    "retinanet": "RetinaNet",
}
SCALES = {"ms": "multi-scale", "lsj": "large-scale jitter"}
HEADS = {"mmdet-heads": "mmdet's own heads"}


class Entry(NamedTuple):
    """A config: folder and title of its family, and its entry in the metafile."""

    folder: str
    family: str
    model: dict

    @property
    def variant(self) -> str:
        """The ``arch``, which follows the family in the config's name."""
        parts = self.model["Name"].split("_")
        prefix = f"{self.folder.replace('_', '-')}-"
        return next(part for part in parts if part.startswith(prefix)).removeprefix(prefix)

    @property
    def recipe(self) -> str:
        """Method and schedule; for ImageNet-1k, the pretraining or nothing."""
        first, *rest = self.model["Name"].split("_")
        schedule = next((part for part in rest if re.search(r"\d(x|e|k)$", part)), "")
        *words, length = schedule.split("-")
        schedule = ", ".join([length, *(SCALES[word] for word in words if word in SCALES)])
        if self.data == "COCO":
            # unusual numbers of images per step
            for gpus, batch in (word.split("xb") for word in words if "xb" in word):
                schedule += f", {int(gpus) * int(batch)} images"
            heads = [HEADS[part] for part in rest if part in HEADS]
            return ", ".join([METHODS[first], *heads, schedule])
        if self.data == "ADE20K":
            return f"UperNet, {schedule}, {rest[-1].rpartition('-')[2]}"
        return "after ImageNet-21k" if "in21k-pre" in rest else ""

    @property
    def data(self) -> str:
        """Training data."""
        return self.model["Metadata"]["Training Data"]

    @property
    def source(self) -> str:
        """Sources of the published results; empty if there are none."""
        return "; ".join(dict.fromkeys(result["Source"] for result in self.results))

    @property
    def released(self) -> list[Released]:
        """The authors' files for this config."""
        files = FAMILIES[self.folder].released if self.folder in FAMILIES else ()
        return [file for file in files if file.config == self.model["Name"]]

    @property
    def command(self) -> str:
        """A first command: a test of the authors' weights, or training if there are none."""
        if self.released:
            return f"python tools/test.py {self.model['Config']} mmvssm://{self.released[0].name}"
        return f"python tools/train.py {self.model['Config']}"

    @property
    def results(self) -> list[dict]:
        """The published results."""
        results = self.model.get("Results", [])
        for result in results:
            if not SOURCE.fullmatch(result["Source"]):
                raise SystemExit(
                    f"model_zoo.py: error: {self.model['Name']}: Source must say where the authors"
                    " published the result, as in 'paper, table 3', 'README' or 'log', got"
                    f" {result['Source']!r}"
                )
        return results

    def number(self, column: Column) -> str:
        """Return a published result, or a dash if there is none."""
        for result in self.results:
            if result["Dataset"] == column.dataset and column.metric in result["Metrics"]:
                return str(result["Metrics"][column.metric])
        return "-"


def read_entries(root: Path) -> list[Entry]:
    """Read all entries of the metafiles in order."""
    entries = []
    for file in yaml.safe_load((root / "model-index.yml").read_text())["Import"]:
        content = yaml.safe_load((root / file).read_text())
        (collection,) = content["Collections"]
        entries += [
            Entry(Path(file).parent.name, collection["Name"], model) for model in content["Models"]
        ]
    return entries


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M"


def giga(flops: float | None, image_size: str | None) -> str:
    """Format FLOPs, with the image size if it is not that of the column."""
    if flops is None:
        return "-"
    # three digits, including trailing zeros
    number = f"{flops / 1e9:.0f}" if flops >= 1e12 else f"{flops / 1e9:#.3g}".rstrip(".")
    return f"{number} G at {image_size}" if image_size else f"{number} G"


def weights(file: Released) -> str:
    """Format a released file: its name, result and links."""
    links = [f"[file]({file.url})"] if file.url else []
    links += [f"[page]({file.page})"] if file.page else []
    links += [f"[log]({url})" for url in file.logs]
    result = f" {file.result};" if file.result else ""
    return f"`mmvssm://{file.name}` ({result.strip()} {', '.join(links)})".replace("( ", "(")


def table(
    task: Task, entries: list[Entry], link: Callable[[Path], str], with_family: bool = False
) -> str:
    """Return the table of one task as Markdown, without empty columns.

    Args:
        task: The task.
        entries: Its entries.
        link: Function from a path in the repository to the target of a link on the page.
        with_family: Whether to name the family in every row.
    """
    rows = []
    for entry in entries:
        metadata, path = entry.model["Metadata"], entry.model["Config"]
        rows.append(
            {
                "Family": entry.family if with_family else "",
                "Config": f"[{entry.variant}]({link(Path(path))})",
                "Recipe": entry.recipe,
                "Params": millions(metadata["Parameters"]),
                f"FLOPs ({task.input_size})": giga(
                    metadata.get("FLOPs"), metadata.get("Image Size")
                ),
                **{column.title: entry.number(column) for column in task.columns},
                "Source": entry.source,
                "Authors' weights": ", ".join(map(weights, entry.released)),
                "Start with": f"`{entry.command}`" if with_family else "",
            }
        )
    titles = [title for title in rows[0] if any(row[title] not in ("", "-") for row in rows)]
    left = ("Family", "Config", "Recipe", "Source", "Authors' weights", "Start with")
    lines = [
        titles,
        ["---" if title in left else "---:" for title in titles],
        *([row[title] for title in titles] for row in rows),
    ]
    note = TEXT_NOTE if any("(text)" in row["Source"] for row in rows) else ""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + note


def tables(entries: list[Entry], link: Callable[[Path], str], with_family: bool = False) -> str:
    """Return the tables of all tasks with their titles."""
    parts = []
    for task in TASKS:
        chosen = [entry for entry in entries if entry.data == task.data]
        if chosen:
            parts.append(f"## {task.title}\n\n{table(task, chosen, link, with_family)}")
    return "\n".join(parts)


def write_pages(root: Path) -> dict[Path, str]:
    """Return the content of every page by its path."""
    entries = read_entries(root)
    pages = {}
    for folder in dict.fromkeys(entry.folder for entry in entries):
        path = root / "configs" / folder / "README.md"
        text = path.read_text()
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            raise SystemExit(
                f"model_zoo.py: error: {path.relative_to(root)} must have once each of the lines\n"
                f"{BEGIN}\n{END}"
            )
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        own = [entry for entry in entries if entry.folder == folder]
        pages[path] = f"{before}{BEGIN}\n\n{tables(own, lambda p: p.name)}\n{END}{after}"
    families = {entry.folder: entry.family for entry in entries}
    licences = [
        f"The authors' weights of {families[folder]} are {FAMILIES[folder].licence}.\n"
        for folder in families
        if folder in FAMILIES and FAMILIES[folder].licence
    ]
    links = ", ".join(
        f"[{name}](../configs/{folder}/README.md)" for folder, name in families.items()
    )
    pages[root / PAGE] = (
        f"{INTRODUCTION}\nFamilies: {links}.\n{''.join(licences)}\n"
        f"{tables(entries, lambda p: f'../{p.as_posix()}', with_family=True)}"
    )
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if a page is out of date"
    )
    args = parser.parse_args()
    if not (ROOT / PAGE.parent).is_dir():
        sys.exit(f"model_zoo.py: error: {str(ROOT)!r} is not a checkout: it has no folder 'docs'")
    outdated = {
        path: text
        for path, text in write_pages(ROOT).items()
        if not path.is_file() or path.read_text() != text
    }
    for path, text in outdated.items():
        print(f"{'out of date' if args.check else 'wrote'}: {path.relative_to(ROOT)}")
        if not args.check:
            atomic_write(path, lambda part, text=text: part.write_text(text))
    if args.check and outdated:
        sys.exit("model_zoo.py: error: run tools/model_zoo.py")
    if not outdated:
        print("all pages are up to date")


if __name__ == "__main__":
    main()
