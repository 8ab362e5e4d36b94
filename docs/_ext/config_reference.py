"""The configuration reference, read from conf/: headers describe files, comments describe keys.

A key's comment stands behind its value, or on the lines above it. Keys in a flow mapping share the comment of its line.
A key without a comment takes, in this order, what the docstring of the class says that its file builds, the comment of
the same key in another file of its group, then of any group, that of the key whose value it repeats (``${seed}``), that
of its counterpart for train, and that of the key above it.

``python docs/_ext/config_reference.py`` prints how many keys still have no comment, and which.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml
from pages import code, prose, table, write_pages

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
ROOT = "config"
SKIPPED_GROUPS = ("archs",)  # arch files are data, named by arch=
TITLES = {
    ROOT: "The root: keys of every command",
    "hydra/launcher": "hydra/launcher",
    "hydra/sweeper": "hydra/sweeper",
}
INTRODUCTIONS = {
    "arch_sampling": "Which archs a step of supernet training runs: `arch_sampling=NAME`.",
    "detector": "A detector and its genes: `detector=NAME`. Each detection task chooses one by itself.",
    "head": "A head of pose or semantic segmentation: `head=NAME`. Each such task chooses one by itself.",
    "recipe": "Choose optimiser and schedule with `recipe=NAME`. Each task chooses one by itself.",
    "search": "The keys that `stage=search` and `stage=proxy` share.",
    ROOT: "These keys exist in every command.",
    "data": "Choose a data layout with `data=NAME`. Each task chooses one by itself.",
    "experiment": "An experiment sets several groups at once: `experiment=NAME`.",
    "objective": "Choose what a search measures: `objective=[score,macs]`.",
    "sampler": "Choose how a search picks the next archs: `sampler=NAME`.",
    "stage": "Choose what to run: `stage=NAME`.",
    "supernet": "Choose the space of networks: `supernet=NAME`. Each task chooses one by itself.",
    "task": "Choose what to train: `task=NAME`.",
    "trainer": "Options of Lightning's `Trainer`.",
}
_LABEL = re.compile(r"^([A-Z][\w ,()-]{1,40}?): (?=\S)")
_COMMANDS = ("Command", "Use", "SLURM")
_SENTENCE = re.compile(r"(?<!\bal)(?<!\be\.g)(?<!\bi\.e)\.\s+(?=[A-Z]|\w+=)")
_OF_OTHER_PROJECTS = {
    "hydra.launcher.name": "of the jobs in SLURM's queue",
    "hydra.launcher.nodes": "machines for each job",
    "hydra.launcher.submitit_folder": "submitit's own files and the output of the jobs",
    "hydra.launcher.timeout_min": "minutes after which SLURM ends a job; it is then queued again and resumes",
    "search.sampler.build.multivariate": "whether genes are modelled together",
    "search.sampler.build.n_startup_trials": "random trials before the model is used",
    "search.sampler.build.population_size": "archs in a generation",
}
"""Keys of classes of Optuna and submitit that neither a comment nor a docstring explains."""


@dataclass(frozen=True)
class Key:
    """One key of a YAML file.

    Attributes:
        path: dotted, as on the command line.
        value: as the file writes it, on one line; the default.
        comment: what the key means; empty if nobody says.
        target: what is built with this key as an argument, as a dotted name; empty for other keys.
    """

    path: str
    value: str
    comment: str
    target: str = ""


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file of the configuration.

    Attributes:
        group: its folder below conf/, or `ROOT`.
        name: the choice's name.
        description: the first line of the header, and the lines after it up to the first label.
        notes: the header's labelled parts, such as ("Command", "python -m ...").
        starts_from: the defaults list, as the file writes it.
        target: what is built from the file, if anything.
        keys: in the order of the file.
    """

    group: str
    name: str
    description: str
    notes: tuple[tuple[str, str], ...]
    starts_from: tuple[str, ...]
    target: str | None
    keys: tuple[Key, ...]


def read_configuration(conf: Path = CONF) -> dict[str, list[ConfigFile]]:
    """All files of the configuration by group, keys without a comment filled in from other files."""
    files: dict[str, list[ConfigFile]] = {}
    for path in sorted(conf.rglob("*.yaml")):
        group = path.parent.relative_to(conf).as_posix()
        group = ROOT if group == "." else group
        if group.split("/")[0] not in SKIPPED_GROUPS:
            files.setdefault(group, []).append(read_file(path, group))
    files = {group: [_documented(file) for file in members] for group, members in files.items()}
    in_group = {group: _comments(members) for group, members in files.items()}
    anywhere = _comments(file for members in files.values() for file in members)
    return {
        group: [
            replace(file, keys=tuple(_filled(key, in_group[group], anywhere) for key in file.keys)) for file in members
        ]
        for group, members in sorted(files.items(), key=lambda item: (item[0] != ROOT, item[0]))
    }


def _documented(file: ConfigFile) -> ConfigFile:
    """The file with what docstrings say of its keys without a comment."""
    keys = (key if key.comment else replace(key, comment=_in_docstring(key)) for key in file.keys)
    return replace(file, keys=tuple(keys))


def _comments(files: Iterable[ConfigFile]) -> dict[str, str]:
    """The most frequent comment of each key."""
    counts: dict[str, Counter[str]] = {}
    for file in files:
        for key in file.keys:
            if key.comment:
                counts.setdefault(key.path, Counter())[key.comment] += 1
    return {path: counter.most_common(1)[0][0] for path, counter in counts.items()}


def _filled(key: Key, *sources: Mapping[str, str]) -> Key:
    if key.comment:
        return key
    repeated = re.fullmatch(r"\$\{([\w.]+)\}", key.value)
    parts = key.path.split(".")
    candidates = [key.path, repeated[1] if repeated else "", key.path.replace(".val_", ".train_")]
    candidates += [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]
    return replace(key, comment=next(filter(None, (_first(path, sources) for path in candidates)), ""))


def _first(path: str, sources: Iterable[Mapping[str, str]]) -> str:
    return next((source[path] for source in sources if path in source), "")


def _in_docstring(key: Key) -> str:
    """What the docstring of the class or function that takes a key as an argument says of it."""
    if not key.target.startswith("nas_transfer."):
        return _OF_OTHER_PROJECTS.get(key.path, "")
    return _arguments(key.target).get(key.path.rpartition(".")[2], "")


@cache
def _arguments(target: str) -> dict[str, str]:
    """The sections ``Args`` and ``Attributes`` of a docstring by name, of a class before those of its bases."""
    module, _, name = target.rpartition(".")
    built = getattr(importlib.import_module(module), name)
    found: dict[str, str] = {}
    for each in inspect.getmro(built) if inspect.isclass(built) else (built,):
        section = ""
        entry: tuple[str, ...] = ()
        for line in inspect.cleandoc(each.__doc__ or "").splitlines():
            heading = re.fullmatch(r"(\w+):", line)
            begins = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
            if heading or not line.startswith("    "):
                section, entry = heading[1] if heading else "", ()
            elif section in ("Args", "Attributes") and begins:
                entry = tuple(argument for argument in begins[1].split(", ") if argument not in found)
                found |= dict.fromkeys(entry, begins[2])
            else:
                found |= {argument: f"{found[argument]} {line.strip()}" for argument in entry}
    return {argument: re.sub(r"`{1,2}", "", text).rstrip(".") for argument, text in found.items()}


def read_file(path: Path, group: str) -> ConfigFile:
    """One file: its header, its defaults list and its keys, each with its own comment."""
    text = path.read_text()
    lines = text.splitlines()
    header_end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = [line[1:].removeprefix(" ") for line in lines[:header_end]]
    package = next((line.split()[1] for line in header if line.startswith("@package")), group.replace("/", "."))
    prefix = "" if group == ROOT or package == "_global_" else package
    description, notes = _header([line for line in header if not line.startswith("@package")])
    node = yaml.compose(text)
    root = node.value if isinstance(node, yaml.MappingNode) else []
    top = {key.value: value for key, value in root}
    target = top.get("_target_")
    pairs = [(key, value) for key, value in root if key.value != "defaults"]
    built = target.value if isinstance(target, yaml.ScalarNode) else ""
    keys = [key for key in _keys(pairs, prefix, lines, header_end, "", built) if not _left_out(key.path, group)]
    return ConfigFile(
        group=group,
        name=path.stem,
        description=description,
        notes=notes,
        starts_from=tuple(_default(item) for item in top["defaults"].value) if "defaults" in top else (),
        target=built or None,
        keys=tuple(keys),
    )


def _left_out(path: str, group: str) -> bool:
    """Hydra's own keys, but for those of a launcher."""
    parts = path.split(".")
    return parts[-1].startswith("_") or (parts[0] == "hydra" and not group.startswith("hydra/"))


def _default(item: yaml.Node) -> str:
    if isinstance(item, yaml.MappingNode):
        key, value = item.value[0]
        choice = value.value if isinstance(value, yaml.ScalarNode) else ", ".join(each.value for each in value.value)
        return f"{key.value.removeprefix('override ').lstrip('/')}={choice}"
    return str(item.value)


def _header(lines: list[str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A header's description and its labelled parts; a line but the first that starts with ``Word:`` opens a part."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for number, line in enumerate(lines):
        found = _LABEL.match(line) if number else None
        label, text = parts[-1]
        command_ended = label.split(",")[0] in _COMMANDS and not text[-1].endswith("\\") and not line.startswith(" ")
        if found:
            parts.append((found[1], [line[found.end() :]]))
        elif command_ended:
            parts.append(("", [line.strip()]))
        else:
            text.append(line.strip())
    joined = [(label, " ".join(" ".join(part).replace(" \\ ", " ").split())) for label, part in parts]
    return joined[0][1], tuple((label, text) for label, text in joined[1:])


def _keys(pairs: list, prefix: str, lines: list[str], header_end: int, inherited: str, target: str) -> Iterator[Key]:
    for key, value in pairs:
        path = f"{prefix}.{key.value}" if prefix else key.value
        comment = _behind(key, value, lines) or inherited or _above(key, lines, header_end)
        if isinstance(value, yaml.MappingNode) and value.value:
            within = comment if value.flow_style else ""
            built = next((inner.value for name, inner in value.value if name.value == "_target_"), "")
            yield from _keys(value.value, path, lines, header_end, within, built)
        else:
            yield Key(path, _written(value, lines), comment, target)


def _behind(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    """The comment behind a value, or behind the key of a block."""
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    mark = key.end_mark if block else value.end_mark
    rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    found = re.match(r"[\s:\]}]*#\s*(.*)", rest)
    return found[1].strip() if found else ""


def _above(key: yaml.Node, lines: list[str], header_end: int) -> str:
    """The comment lines right above a key, at its indentation."""
    number, found = key.start_mark.line - 1, []
    opening = " " * key.start_mark.column + "#"
    while number >= header_end and lines[number].startswith(opening):
        found.insert(0, lines[number].strip("# "))
        number -= 1
    return " ".join(found)


def _written(value: yaml.Node, lines: list[str]) -> str:
    if isinstance(value, yaml.SequenceNode) and not value.flow_style:
        return f"({len(value.value)} entries)"
    start, end = value.start_mark, value.end_mark
    if start.line == end.line:
        text = lines[start.line][start.column : end.column]
    else:
        rows = [lines[start.line][start.column :], *lines[start.line + 1 : end.line], lines[end.line][: end.column]]
        text = " ".join(row.strip() for row in rows)
    return text if len(text) <= 90 else text[:87] + "..."


# Pages


def page_name(group: str) -> str:
    """The file of a group's page, without its ending."""
    return group.replace("/", "_")


def render(configuration: Mapping[str, list[ConfigFile]]) -> dict[str, str]:
    """All pages by file name, with an index."""
    pages = {f"{page_name(group)}.md": _page(group, files) for group, files in configuration.items()}
    rows = [
        (f"[{group}]({page_name(group)}.md)", ", ".join(code(file.name) for file in files))
        for group, files in configuration.items()
    ]
    index = [
        "# Configuration",
        "",
        "Every setting is a key of one Hydra configuration. Set a key with `key=value` on the command line, and choose",
        "a file of a group with `group=name`. `--cfg job` prints the whole configuration of a command, `--help` lists",
        "the choices. These pages are generated from the comments in `conf/`.",
        "",
        "A value such as `${seed}` is taken from another key, `???` must be given, and `null` leaves a setting out.",
        "",
        table(["group", "choices"], rows, [20, 80]),
        "```{toctree}",
        ":hidden:",
        "",
        *(page_name(group) for group in configuration),
        "```",
        "",
    ]
    return {"index.md": "\n".join(index), **pages}


def _page(group: str, files: list[ConfigFile]) -> str:
    lines = [f"# {TITLES.get(group, group)}", "", INTRODUCTIONS.get(group, f"Choose with `{group}=NAME`."), ""]
    for file in files:
        if group != ROOT:
            lines += [f"## {file.name}", ""]
        lines += _section(file)
    return "\n".join(lines)


def _section(file: ConfigFile) -> list[str]:
    lines = [prose(file.description), ""]
    for label, text in file.notes:
        if label.split(",")[0] in _COMMANDS and "python -m" in text:
            lines += [f"{prose(label)}:", "", "```console", text, "```", ""]
        else:
            start = f"{prose(label)}: " if label else ""
            lines += [f"{start}{code(text) if label in _COMMANDS else prose(text)}", ""]
    if file.starts_from:
        lines += ["Starts from: " + ", ".join(code(item) for item in file.starts_from), ""]
    if file.target:
        lines += [f"Builds: {code(file.target)}", ""]
    if file.keys:
        rows = [(code(key.path), code(key.value), prose(key.comment)) for key in file.keys]
        lines += [table(["key", "default", "meaning"], rows, [30, 20, 50])]
    return lines


def first_sentence(text: str) -> str:
    """A description up to the end of its first sentence."""
    return _SENTENCE.split(text, maxsplit=1)[0].rstrip(".")


def choices(files: Iterable[ConfigFile]) -> str:
    """A table of a group's choices with the first sentence of each header, to be included in other pages."""
    rows = [(code(file.name), prose(first_sentence(file.description))) for file in files]
    return table(["name", "meaning"], rows, [25, 75])


def write(app: object) -> None:
    """Write the pages before Sphinx looks for documents."""
    configuration = read_configuration()
    write_pages(REPOSITORY / "docs/reference/configuration", render(configuration))
    tables = {f"{page_name(group)}.md": choices(files) for group, files in configuration.items()}
    write_pages(REPOSITORY / "docs/_generated/choices", tables)


def setup(app) -> dict[str, bool]:  # type: ignore[no-untyped-def]
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def uncommented(configuration: Mapping[str, list[ConfigFile]]) -> list[tuple[str, str]]:
    """File and key of everything that no comment explains."""
    return [
        (f"{group}/{file.name}", key.path)
        for group, files in configuration.items()
        for file in files
        for key in file.keys
        if not key.comment
    ]


if __name__ == "__main__":
    everything = read_configuration()
    missing = uncommented(everything)
    total = sum(len(file.keys) for files in everything.values() for file in files)
    for file_name, path in missing:
        print(f"{file_name}: {path}")
    print(f"{len(missing)} of {total} keys without a comment, {len({path for _, path in missing})} different ones")
    sys.exit(0)
