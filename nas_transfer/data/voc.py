"""Pascal VOC: an XML file for each image, and lists of images under ``ImageSets/Main``.

Image ids count the sorted names from 1, and category ids the sorted names of the classes. Objects marked as difficult
are read as COCO's crowds: they are ignored in scoring and training.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from nas_transfer.data.annotation_content import AnnotationContent, Record, shown
from nas_transfer.data.annotation_sources import PART_FOLDERS, PartName, missing_part
from nas_transfer.data.images import files_below, image_files, named_in, sizes_of
from nas_transfer.errors import DataError

ANNOTATION_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", ".")
LISTS = "ImageSets/Main"
UNDIVIDED_LISTS = ("trainval", "train", "default")
DIGITS = 6
"""Decimals of a coordinate in pixels: rounding takes the noise of the differences away."""
MOST_BYTES = 1 << 24
FIRST_PIXEL_IS_ONE = "The VOC"
"""Begins the name of the database in the original sets. Their coordinates begin at 1, those that tools write at 0."""


@dataclass(frozen=True)
class VocSource:
    """The annotation files of a part; see `AnnotationSource`.

    Attributes:
        root: folder of the dataset.
        files: annotation files of the part.
        others: annotation files of the other part, which name classes too.
        folder: folder of the images.
        undivided: whether the dataset has no split.
    """

    root: Path
    files: Sequence[Path]
    others: Sequence[Path]
    folder: Path
    undivided: bool = False

    @property
    def form(self) -> str:
        """Name of the form, for people."""
        return f"Pascal VOC{' without a split' if self.undivided else ''}"

    def read(self, refused: list[str] | None = None) -> AnnotationContent:
        """Read the annotation file of each image."""
        trees = [(path, *_parse(path)) for path in self.files]
        by_stem = _by_stem(self.folder)
        names = [_image_of(path, tree, self.folder, by_stem) for path, tree, _ in trees]
        order = sorted(range(len(names)), key=names.__getitem__)
        for first, second in itertools.pairwise(order):
            if names[first] == names[second]:
                raise DataError(f"{self.files[first]} and {self.files[second]} must not be of one image: remove one")
        labels = self._labels([tree for _, tree, _ in trees])
        images: list[Record] = []
        annotations: list[Record] = []
        origins: list[str] = []
        for image_id, position in enumerate(order, start=1):
            path, tree, _ = trees[position]
            width, height = _size(path, tree, self.folder / names[position])
            images.append({"id": image_id, "file_name": names[position], "width": width, "height": height})
            first = int((tree.findtext("source/database") or "").startswith(FIRST_PIXEL_IS_ONE))
            for number, element in enumerate(tree.findall("object"), start=1):
                where = f"object {number} of {path}"
                try:
                    annotations.append({"image_id": image_id, **_object(element, labels, first, where)})
                    origins.append(where)
                except DataError as error:
                    if refused is None:
                        raise
                    refused.append(str(error))
        categories: list[Record] = [{"id": label, "name": name} for name, label in labels.items()]
        digests = [f"sha256:{digest} {path.relative_to(self.root).as_posix()}" for path, _, digest in trees]
        return AnnotationContent(self.files[0].parent, images, annotations, categories, origins, digests)

    def _labels(self, trees: Sequence[ElementTree.Element]) -> dict[str, int]:
        """Category ids of the classes of both parts, which have the same ids in each."""
        all_trees = [*trees, *(_parse(path)[0] for path in self.others)]
        names = {_class_name(element) for tree in all_trees for element in tree.findall("object")} - {""}
        if not names:
            raise DataError(f"no objects in the files of {self.files[0].parent}: annotate the images")
        return {name: label for label, name in enumerate(sorted(names), start=1)}


def _class_name(element: ElementTree.Element) -> str:
    return (element.findtext("name") or "").strip()


def _parse(path: Path) -> tuple[ElementTree.Element, str]:
    """The root element of an annotation file, and the hash of the file.

    A document type is refused before anything is parsed: entities are declared there, which could make a small file
    huge or name other files.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        text = data.decode("utf-8-sig")  # parsed as text, so that a declared encoding hides nothing
        if "<!DOCTYPE" in text:
            raise ValueError("it has a document type, which may declare entities")
        element = ElementTree.fromstring(text)
    except (OSError, ValueError, ElementTree.ParseError, RecursionError) as err:
        cause = " ".join(str(err).split())
        raise DataError(f"{path} cannot be read as XML ({cause}): write Pascal VOC annotations in UTF-8") from err
    return element, hashlib.sha256(data).hexdigest()


def _by_stem(folder: Path) -> Mapping[str, list[str]]:
    """The images of a folder, and of those below it, by their names without suffix."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in image_files(folder):
        by_stem[Path(path).stem].append(Path(path).relative_to(folder).as_posix())
    return by_stem


def _image_of(path: Path, tree: ElementTree.Element, folder: Path, by_stem: Mapping[str, list[str]]) -> str:
    """The image of an annotation file: the only one with its name, else the one that the file names."""
    twins = by_stem.get(path.stem, [])
    if len(twins) == 1:
        return twins[0]
    named = (tree.findtext("filename") or "").strip()
    inside = named_in(folder, named) if named and not Path(named).is_absolute() else None
    if inside is not None and inside.is_file():
        return Path(named).as_posix()
    raise DataError(
        f"{path} must have one image of its name in {folder}, got {len(twins)}, and no file is called {shown(named)}: "
        "add the image, or correct <filename>"
    )


def _size(path: Path, tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Width and height: of the file, or of the image where the file has none or 0."""
    texts = [tree.findtext(f"size/{side}") or "0" for side in ("width", "height")]
    try:
        width, height = (float(text) for text in texts)
        if not (width.is_integer() and height.is_integer() and min(width, height) >= 0):
            raise ValueError
    except ValueError as err:
        raise DataError(f"the size in {path} must be whole numbers, got {shown(texts)}: correct it") from err
    return (int(width), int(height)) if width and height else sizes_of([image])[0][:2]


def _object(element: ElementTree.Element, labels: Mapping[str, int], first: int, where: str) -> Record:
    """An object as an annotation.

    Args:
        first: the coordinate of the first pixel; 1 in the original sets, whose corners are pixels that belong to the
            box.
    """
    name = _class_name(element)
    if not name:
        raise DataError(f"{where} must have a <name>, got none: name its class")
    texts = [element.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text or "") for text in texts)
    except ValueError as err:
        raise DataError(
            f"{where} must have a <bndbox> of four numbers xmin, ymin, xmax, ymax, got {shown(texts)}: correct it"
        ) from err
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DataError(f"<difficult> of {where} must be 0 or 1, got {shown(difficult)}: correct it")
    left, top = left - first, top - first
    return {
        "category_id": labels[name],
        "bbox": [round(value, DIGITS) for value in (left, top, right - left, bottom - top)],
        "iscrowd": int(difficult),
    }


def find_voc(root: Path, part: PartName, kinds: Sequence[str]) -> VocSource | None:
    """The Pascal VOC annotations of a part; None for a dataset without them or for other kinds than boxes.

    Raises:
        MissingPartError: a dataset of the other part alone.
        DataError: a list of images that cannot be used.
    """
    if "instances" not in kinds:
        return None
    other: PartName = "val" if part == "train" else "train"
    beside = {name: _files_beside_images(root, name) for name in (part, other)}
    if beside[part] is not None or beside[other] is not None:  # as Roboflow writes them
        files = beside[part]
        if files is None:
            raise missing_part(root, part, [f"{name}/*.xml" for name in PART_FOLDERS[part]])
        return VocSource(root, files, beside[other] or (), files[0].parent)
    annotations, all_files = _annotation_files(root)
    if not all_files:
        return None
    images = next(folder for name in IMAGE_FOLDERS if (folder := root / name).is_dir())
    lists = root / LISTS
    if (lists / "val.txt").is_file():
        if not (lists / f"{part}.txt").is_file():
            raise missing_part(root, part, [f"{LISTS}/{part}.txt"])
        others = _listed(lists / f"{other}.txt", annotations) if (lists / f"{other}.txt").is_file() else []
        return VocSource(root, _listed(lists / f"{part}.txt", annotations), others, images)
    listed = next((path for name in UNDIVIDED_LISTS if (path := lists / f"{name}.txt").is_file()), None)
    files = all_files if listed is None else _listed(listed, annotations)
    return VocSource(root, files, (), images, undivided=True)


def _files_beside_images(root: Path, part: PartName) -> list[Path] | None:
    for name in PART_FOLDERS[part]:
        files = sorted((root / name).glob("*.xml"))
        if files:
            return files
    return None


def _annotation_files(root: Path) -> tuple[Path, list[Path]]:
    """The folder of the annotation files, and these, sorted; of a dataset without such a folder, those beside it."""
    for name in ANNOTATION_FOLDERS:
        files = [Path(path) for path in files_below(root / name) if path.endswith(".xml")]
        if files:
            return root / name, files
    return root, sorted(root.glob("*.xml"))


def _listed(path: Path, annotations: Path) -> list[Path]:
    """The annotation files of a list, whose lines are names without suffix."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read ({err}): write the name of an image in each line") from err
    files = []
    for number, line in enumerate(lines, start=1):
        if not (name := line.strip()):
            continue
        file = named_in(annotations, f"{name}.xml")
        if file is None or not file.is_file():
            raise DataError(
                f"line {number} of {path} must name a file in {annotations} without .xml, got {shown(name)}: correct "
                "the list, or add the annotations"
            )
        files.append(file)
    if not files:
        raise DataError(f"{path} must list images, got none: write the name of an image in each line")
    return sorted(set(files))
