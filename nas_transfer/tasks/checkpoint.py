"""Weights on disk: the file in which every training stage leaves its network, and public weights read as one.

The file holds tensors and plain values only: reading one never unpickles an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.errors import ConfigError, WeightsError
from nas_transfer.runs import Ancestor, file_sha256, files
from nas_transfer.runs.atomic import replacing
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.fields import default_fields_of_weights, fields_of_weights
from nas_transfer.supernet.importing import import_supernet, package_file
from nas_transfer.supernet.networks import build_body
from nas_transfer.supernet.ops import copy_slices, leading_slice
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.public.reading import default_weights_file
from nas_transfer.supernet.readers import PublicNet, override_of
from nas_transfer.supernet.resnet import torchvision_resnet
from nas_transfer.supernet.weights.reading import read_file, require_plain_tensors, state_of
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.task import Task
from nas_transfer.tasks.torchvision_detectors import LICENCE, DetectorLayout, body_of, layout_of, rest_of

FORMAT = "nas_transfer/3"
MOST_LETTERS = 50
ENTRIES: Mapping[str, type | tuple[type, ...]] = {
    "space": str, "arch": (dict, type(None)), "task": str, "num_classes": int, "preprocessing": dict,
    "calibrated": (dict, type(None)), "body": dict, "rest": dict, "metrics": dict, "versions": dict, "stage": str,
    "config_sha256": str, "provenance": list,
}  # fmt: skip
"""The types of the entries of a file."""
NATIVE, AUTO, DEFAULT, RANDOM = "native", "auto", "default", "random"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network on disk.

    Attributes:
        path: where it was read.
        sha256: hash of the file's content.
        format: `FORMAT`, or the layout of a public file.
        space: name of the search space.
        arch: dict form of the arch; None for a supernet.
        task: `TaskKind.name` of the task that trained it.
        num_classes: number of classes of that task.
        preprocessing: that the weights were trained with.
        calibrated: dict form of the arch that the BatchNorm statistics belong to; None if they belong to none.
        body: tensors of the body by name.
        rest: tensors of neck and head by name.
        licence: licence of public weights; empty for weights of this program.
        origin: of public weights model, page, paper and preprocessing, see `WeightsOrigin.record`.
        metrics: metrics of the evaluation after training, fractions.
        versions: versions of the packages that trained it.
        stage: that trained it.
        config_sha256: SHA-256 of the configuration of that stage.
        provenance: the files that it descends from, oldest first.
        table_fields: values of the table's fields with the metadata `nas_transfer.supernet.fields.OF_WEIGHTS`, by name.
        step: the training step after which the weights were kept; None for those of the end.
    """

    path: Path
    sha256: str
    format: str
    space: str
    arch: dict[str, object] | None
    task: str
    num_classes: int
    preprocessing: Preprocessing
    calibrated: dict[str, object] | None
    body: dict[str, Tensor]
    rest: dict[str, Tensor]
    licence: str = ""
    origin: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    stage: str = ""
    config_sha256: str = ""
    provenance: tuple[Ancestor, ...] = ()
    table_fields: dict[str, object] = field(default_factory=dict)
    step: int | None = None

    @property
    def is_public_net(self) -> bool:
        """Whether the weights are those of one public classifier, trained alone, rather than those of a supernet."""
        return self.arch is None and self.calibrated is not None and self.task == ClassificationTask.kind.name

    def lineage(self) -> tuple[Ancestor, ...]:
        """The provenance of weights that are trained from this file: its own, and the file itself with its hash."""
        if self.format == RANDOM:
            return ()
        itself = Ancestor(
            str(self.path), self.sha256, self.format, self.licence, self.stage, self.task, self.config_sha256,
            **self.origin,
        )  # fmt: skip
        return (*self.provenance, itself)

    def is_of_kind(self, task: Task) -> bool:
        """Whether neck and head mean the same in a task: it is of the kind of the task that trained them."""
        return self.task == task.kind.name


def save_checkpoint(
    path: Path, task: Task, *, parent: Checkpoint | None, metrics: Mapping[str, float], versions: Mapping[str, str],
    stage: str, config_sha256: str, step: int | None = None,
) -> None:  # fmt: skip
    """Write the network of a task and where it comes from, atomically; `step` is that of weights on the way."""
    body = task.body.state_dict()
    inside = {id(tensor) for tensor in task.body.state_dict(keep_vars=True).values()}
    whole = task.network.state_dict(keep_vars=True)
    arch = None if task.arch is SUPERNET else task.arch.to_dict()
    content = {
        "format": FORMAT,
        "space": task.table.space.name,
        "arch": arch,
        "task": task.kind.name,
        "num_classes": task.settings.num_classes,
        "preprocessing": asdict(task.table.preprocessing),
        "table_fields": fields_of_weights(task.table),
        "calibrated": arch,
        "body": {name: tensor.cpu() for name, tensor in body.items()},
        "rest": {name: tensor.detach().cpu() for name, tensor in whole.items() if id(tensor) not in inside},
        "metrics": dict(metrics),
        "versions": dict(versions),
        "stage": stage,
        "config_sha256": config_sha256,
        "provenance": [] if parent is None else [asdict(ancestor) for ancestor in parent.lineage()],
    } | ({} if step is None else {"step": step})
    with replacing(path) as temporary, temporary.open("wb") as stream:  # a full disk is an OSError of the stream
        torch.save(content, stream)


def weights_file(weights: str, table: SupernetTable) -> Path:
    """The file that `weights` names: that of a run folder, the file itself, or that of an installed package.

    The word ``default`` names the weights that the library of the table's public network has for it.

    Raises:
        WeightsError: a package that is not installed, or a library whose weights cannot be had.
    """
    path = Path(weights)
    if not path.exists():
        source: PublicNet | None = getattr(table, "source", None)
        if weights == DEFAULT and source is None:
            raise WeightsError(
                f"weights={DEFAULT} needs supernet=timm or supernet=torchvision, got the supernet '{table.name}': "
                "set weights=null, a run, a file or a package"
            )
        found = default_weights_file(source) if weights == DEFAULT and source is not None else package_file(weights)
        path = found or path
    return path / files.WEIGHTS if path.is_dir() else path


def load_checkpoint(weights: str, table: SupernetTable, weights_format: str = AUTO) -> Checkpoint:
    """Read the weights of a run, or public ones.

    Args:
        weights: a run directory, a file, the name of an installed package (``efficientnet_lite0``), or ``default``.
        table: the supernet that the weights must belong to.
        weights_format: ``auto``, ``native`` (a file of this program), or a public layout.

    Raises:
        WeightsError: the file is missing or damaged, holds other objects than tensors and plain values, or is of
            another layout or space.
    """
    file = weights_file(weights, table)
    content = read_file(file)
    if not (isinstance(content, dict) and "format" in content):
        if weights_format == NATIVE:
            raise WeightsError(
                f"{file} must be a checkpoint of this program ({FORMAT}), got one of another format: "
                "set weights_format=auto"
            )
        return _imported(file, content, table, weights_format)
    if content["format"] != FORMAT:
        given = " ".join(str(content["format"]).split())[:MOST_LETTERS]
        raise WeightsError(f"{file} must have the format {FORMAT}, got the format {given}: train the network again")
    if weights_format not in (AUTO, NATIVE):
        raise WeightsError(
            f"{file} must have the layout {weights_format}, got this program's own format: set weights_format=auto"
        )
    try:
        _require_entries(content)
        require_plain_tensors({**content["body"], **content["rest"]}, file)
        content["preprocessing"] = Preprocessing(**content["preprocessing"])
        content["table_fields"] = default_fields_of_weights(table) | content.get("table_fields", {})
        content["provenance"] = tuple(Ancestor(**ancestor) for ancestor in content["provenance"])
        checkpoint = Checkpoint(path=file, sha256=file_sha256(file), **content)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise WeightsError(
            f"{file} does not hold the entries of the format {FORMAT} ({' '.join(str(error).split())}): train the "
            "network again"
        ) from error
    if checkpoint.space != table.space.name:
        raise WeightsError(
            f"{file} must hold weights of the space '{table.space.name}', got those of '{checkpoint.space}': "
            f"set {override_of(checkpoint.space)}"
        )
    unknown = sorted(set(checkpoint.table_fields) - set(default_fields_of_weights(table)))
    if unknown:
        raise WeightsError(
            f"{file} must hold known fields of the supernet '{table.name}', got '{unknown[0]}': update this program"
        )
    return checkpoint


def random_weights(table: SupernetTable) -> Checkpoint:
    """Stands for the weights of a supernet where there are none: it holds no tensors and descends from nothing."""
    return Checkpoint(
        path=Path("random weights"), sha256="", format=RANDOM, space=table.space.name, arch=None, task="",
        num_classes=0, preprocessing=table.preprocessing, calibrated=None, body={}, rest={},
    )  # fmt: skip


def _require_entries(content: Mapping[object, object]) -> None:
    """Raise TypeError for an entry of another type than this program writes."""
    for name, kind in ENTRIES.items():
        if not isinstance(content[name], kind):
            raise TypeError(f"{name} is a {type(content[name]).__name__}")
    for part in ("body", "rest"):
        tensors = cast(Mapping[object, object], content[part])
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()):
            raise TypeError(f"{part} does not hold named tensors alone")


def _imported(path: Path, content: object, table: SupernetTable, weights_format: str) -> Checkpoint:
    state = state_of(content, path)
    is_read = getattr(table, "source", None) is not None
    detector = layout_of(state, path) if weights_format == AUTO and not is_read else None
    if detector is not None:
        return _imported_detector(path, state, table, detector)
    imported = import_supernet(state, table, path, weights_format)
    return Checkpoint(
        path=path,
        sha256=file_sha256(path),
        format=imported.origin.name,
        space=table.space.name,
        arch=None,
        task=ClassificationTask.kind.name,
        num_classes=imported.num_classes,
        preprocessing=imported.origin.preprocessing,
        calibrated=None if imported.calibrated is None else imported.calibrated.to_dict(),
        body=imported.body,
        rest={f"head.{name}": tensor for name, tensor in imported.head.items()},
        licence=imported.origin.licence,
        origin=imported.origin.record,
        table_fields=default_fields_of_weights(table) | dict(imported.origin.table_fields),
    )


def _imported_detector(
    path: Path, state: Mapping[str, Tensor], table: SupernetTable, layout: DetectorLayout
) -> Checkpoint:
    rest, num_classes = rest_of(state, layout, path)
    return Checkpoint(
        path=path,
        sha256=file_sha256(path),
        format=layout.name,
        space=table.space.name,
        arch=None,
        task=layout.kind.name,
        num_classes=num_classes,
        preprocessing=torchvision_resnet.ORIGIN.preprocessing,
        calibrated=table.space.largest().to_dict(),
        body=body_of(state, table, path),
        rest=rest,
        licence=LICENCE,
        table_fields=default_fields_of_weights(table),
    )


def table_of_weights(table: SupernetTable, checkpoint: Checkpoint) -> SupernetTable:
    """The table with everything that comes with the weights: their preprocessing, and `Checkpoint.table_fields`."""
    return replace(table, preprocessing=checkpoint.preprocessing, **checkpoint.table_fields)  # type: ignore[type-var]


def checkpoint_arch(checkpoint: Checkpoint, space: SearchSpace) -> ArchOrSupernet:
    """The arch of the weights in a checkpoint, or `SUPERNET`."""
    return SUPERNET if checkpoint.arch is None else space.from_dict(checkpoint.arch)


def is_whole(checkpoint: Checkpoint, task: Task) -> bool:
    """Whether the weights are of the same kind of task, and those of the largest arch alone at some input size."""
    arch = checkpoint_arch(checkpoint, task.space)
    return arch is not SUPERNET and checkpoint.is_of_kind(task) and arch == task.largest_at(arch)


def load_whole(supernet: Task, checkpoint: Checkpoint) -> None:
    """Fill a supernet with the weights of its largest arch; what only smaller archs use keeps its first values.

    Raises:
        WeightsError: as `load_network` does.
    """
    subnet = load_subnet(supernet, checkpoint)
    sources = subnet.network.state_dict()
    with torch.no_grad():
        for name, target in supernet.network_of(subnet.active_arch).state_dict(keep_vars=True).items():
            if name in sources:
                leading_slice(target, sources[name].shape, name).copy_(sources[name])


def load_subnet(task: Task, checkpoint: Checkpoint) -> Task:
    """The network of one arch in a checkpoint, as the same task; errors of `load_network`."""
    subnet = task.rebuild(replace(task.settings, arch=checkpoint_arch(checkpoint, task.space)))
    load_network(subnet, checkpoint)
    return subnet


def load_network(task: Task, checkpoint: Checkpoint) -> None:
    """Fill the whole network of a task of the same kind and number of classes.

    Raises:
        WeightsError: another kind or number of classes, or a tensor that differs (the first one is named).
    """
    count = task.settings.num_classes
    if not checkpoint.is_of_kind(task) or checkpoint.num_classes != count:
        raise WeightsError(
            f"the weights must be of a {task.kind.name} task with {count} classes, got {checkpoint.path} of a "
            f"{checkpoint.task} task with {checkpoint.num_classes}: fine-tune them on this task first"
        )
    inherit(task, checkpoint)


def inherit(task: Task, checkpoint: Checkpoint) -> list[str]:
    """Fill a task with everything in a checkpoint that means the same in it. A subnet takes its part of a supernet.

    The body is always filled. Neck and head are filled if the task is of the same kind, except layers with one output
    per class if the number of classes differs.

    Returns:
        The names of the tensors of neck and head that keep their new weights.

    Raises:
        WeightsError: a tensor that differs (the first one is named), or a table without the checkpoint's fields.
    """
    wanted, found = checkpoint.table_fields, fields_of_weights(task.table)
    if wanted != found:
        raise WeightsError(
            f"{checkpoint.path} must be loaded into a network with {wanted}, got {found}: its weights would compute "
            "something else"
        )
    same_task = checkpoint.is_of_kind(task) and _has_head_of(checkpoint, task)
    if checkpoint.arch is None and task.arch is not SUPERNET:
        if not same_task:
            body = build_body(task.table)
            _fill(body.state_dict(keep_vars=True), checkpoint.body, checkpoint)
            copy_slices(body, task.body)
            return _rest_names(task)
        supernet = task.rebuild(replace(task.settings, arch=SUPERNET))
        untrained = inherit(supernet, checkpoint)
        copy_slices(supernet.network_of(task.arch), task.network)
        return untrained
    _fill(task.body.state_dict(keep_vars=True), checkpoint.body, checkpoint)
    if not same_task:
        return _rest_names(task)
    whole = task.network.state_dict(keep_vars=True)
    targets = {name: whole[name] for name in _rest_names(task)}
    return _fill(
        targets, checkpoint.rest, checkpoint, other_classes=checkpoint.num_classes != task.settings.num_classes
    )


def _has_head_of(checkpoint: Checkpoint, task: Task) -> bool:
    """Whether the weights hold the head of a task: those of a supernet hold all, those of one arch its own."""
    branch = task.space.branch
    if branch is None or checkpoint.arch is None or task.arch is SUPERNET:
        return True
    return checkpoint.arch.get(branch.name, branch.choices[-1]) == task.arch[branch.name]


def _rest_names(task: Task) -> list[str]:
    """The names of the tensors of neck and head in the network."""
    inside = {id(tensor) for tensor in task.body.state_dict(keep_vars=True).values()}
    return [name for name, tensor in task.network.state_dict(keep_vars=True).items() if id(tensor) not in inside]


def _fill(
    targets: dict[str, Tensor], sources: dict[str, Tensor], checkpoint: Checkpoint, *, other_classes: bool = False
) -> list[str]:
    """Copy tensors by name; returns the names of those that were not copied, since they have a row for each class."""
    untrained = []
    for name, target in targets.items():
        source = sources.get(name)
        if source is not None and other_classes and target.dim() and source.shape[1:] == target.shape[1:]:
            if len(source) != len(target):
                untrained.append(name)
        elif source is not None and source.is_floating_point() != target.is_floating_point():
            raise WeightsError(
                f"tensor '{name}' in {checkpoint.path} must be of the type {target.dtype}, got {source.dtype}: train "
                "the network again"
            )
        elif source is None or source.shape != target.shape:
            raise WeightsError(
                f"tensor '{name}' in {checkpoint.path} must have the shape {tuple(target.shape)}, got "
                f"{'none' if source is None else tuple(source.shape)}: use weights of this arch and space"
            )
    unused = sorted(set(sources) - set(targets))
    if unused:
        raise WeightsError(
            f"{checkpoint.path} has the unknown tensor '{unused[0]}': use weights of this arch and space"
        )
    with torch.no_grad():
        for name in set(targets) - set(untrained):
            targets[name].copy_(sources[name])
    return untrained
