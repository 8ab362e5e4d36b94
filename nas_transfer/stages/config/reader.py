"""Read the composed YAML into a record: check types, bounds and keys, and report all faults at once."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar, cast, get_args, get_origin, runtime_checkable

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from nas_transfer.errors import ConfigError, report_faults
from nas_transfer.stages.config.factory import Factory
from nas_transfer.stages.config.field import Key, keys_of
from nas_transfer.stages.config.values import MISSING, TARGET, accepts, alternatives, bare, range_of, shown, words

FOLDER_KEYS = ("name", "runs", "run_dir")
"""Keys that set the run folder. Values that follow from them are the same in every identity."""
OF_HYDRA = frozenset({"hydra"})
LONGEST = 200
"""Letters of the name of a folder."""

Record = TypeVar("Record")
_NOTHING = MISSING
_UNSET = (None, 0, False, _NOTHING)


@runtime_checkable
class ChecksItself(Protocol):
    """A record with rules about several of its keys."""

    def faults(self) -> Iterable[str]:
        """A sentence for each broken rule."""


@runtime_checkable
class HasParts(Protocol):
    """A record from which objects are made that check their values."""

    def parts(self) -> Iterable[Callable[[], object]]:
        """Makers of these objects, which raise ConfigError."""


@dataclass(frozen=True)
class _Deferred:
    """A check that imports what a `_target_` names."""

    check: Callable[[], list[str]]


class _Reading:
    """One pass over a configuration: its faults so far, and checks that must import more."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.deferred: list[_Deferred] = []

    def record(self, cfg: DictConfig, record: type, path: str, others: Collection[str] = ()) -> object:
        """A record from the keys of `cfg`; `_NOTHING` after a fault.

        Args:
            others: further keys that are allowed.
        """
        before = len(self.faults)
        known = keys_of(record)
        rest = next((name for name, (_, options) in known.items() if options.rest), None)
        names = [str(name) for name in cfg]
        unknown = [name for name in names if (name not in known or name == rest) and name not in others]
        values: dict[str, object] = {}
        for name, (hint, options) in known.items():
            if name == rest:
                content = {other: self.plain(cfg, other, _join(path, other)) for other in unknown}
                values[name] = self._factory(content, path, options)
            elif options.only_with and not any(values.get(switch) not in _UNSET for switch in options.only_with):
                values[name] = None
            elif name not in names:
                self._missing(_join(path, name))
            else:
                values[name] = self.key(cfg, name, hint, _join(path, name), options)
        if rest is None:
            self.faults += [_unknown(_join(path, name), [_join(path, key) for key in known]) for name in unknown]
        if len(self.faults) > before or any(value is _NOTHING for value in values.values()):
            return _NOTHING
        read = record(**values)
        if isinstance(read, ChecksItself):
            self.faults += read.faults()
        if isinstance(read, HasParts):
            self.deferred += [_Deferred(lambda make=make: _faults_of(make)) for make in read.parts()]  # type: ignore[misc]
        return read

    def key(self, cfg: DictConfig, name: str, hint: object, path: str, options: Key) -> object:
        """The value of a key, converted to its type."""
        value = self._value(cfg, name, path)
        if value is None and options.null is not None:
            self.faults.append(options.null)
            return _NOTHING
        return _NOTHING if value is _NOTHING else self.convert(value, hint, path, options)

    def convert(self, value: object, hint: object, path: str, options: Key) -> object:
        """A value converted to the type of its field; `_NOTHING` after a fault."""
        if len(alternatives(hint)) > 1:
            return self._one_of(value, hint, path, options)
        if get_origin(hint) is Annotated:
            return self._scalar(value, hint, path, options)
        origin = get_origin(hint)
        if hint is object:
            return self.plain_value(value, path)
        if hint is Factory or origin is Factory:
            if isinstance(value, DictConfig):
                content = cast(dict[str, object], self.plain_value(value, path))
                return self._factory(content, path, options)
        elif dataclasses.is_dataclass(hint):
            if isinstance(value, DictConfig):
                return self.record(value, cast(type, hint), path)
        elif origin is tuple:
            if isinstance(value, ListConfig):
                return self._items(value, get_args(hint), path, options)
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            if isinstance(value, DictConfig):
                inner = get_args(hint)[1]
                items = {str(name): self.key(value, str(name), inner, _join(path, name), options) for name in value}
                return _NOTHING if any(item is _NOTHING for item in items.values()) else items
        else:
            return self._scalar(value, hint, path, options)
        return self._wrong(path, hint, value)

    def plain(self, cfg: DictConfig, name: str, path: str) -> object:
        """The resolved value of a key, without OmegaConf's types."""
        value = self._value(cfg, name, path)
        return value if value is _NOTHING else self.plain_value(value, path)

    def plain_value(self, value: object, path: str) -> object:
        """A resolved value, without OmegaConf's types."""
        if isinstance(value, DictConfig):
            return {str(name): self.plain(value, name, _join(path, name)) for name in value}  # type: ignore[arg-type]
        if isinstance(value, ListConfig):
            return [self.plain(value, index, f"{path}[{index}]") for index in range(len(value))]  # type: ignore[arg-type]
        return value

    def _value(self, cfg: DictConfig, name: str, path: str) -> object:
        try:
            return cfg[name]
        except MissingMandatoryValue:
            self._missing(path)
        except InterpolationToMissingValueError:
            raw = cfg._get_node(name)._value()  # type: ignore[union-attr]
            self.faults.append(f"{path} is {raw}, which is missing: add a value to the command")
        except OmegaConfBaseException as error:
            self.faults.append(f"{path} cannot be resolved: {str(error).splitlines()[0]}")
        return _NOTHING

    def _missing(self, path: str) -> None:
        self.faults.append(f"{path} is missing: add {path}=... to the command")

    def _factory(self, content: Mapping[str, object], path: str, options: Key) -> object:
        if options.target is not None and TARGET not in content:
            content = {TARGET: options.target, **content}
        if TARGET not in content:
            self.faults.append(f"{path} needs a class, got no {TARGET}: add {path}.{TARGET}=... to the command")
            return _NOTHING
        factory: Factory[object] = Factory(content, path, options.uncounted)
        self.deferred.append(_Deferred(lambda: factory.faults(options.builds, options.fills)))
        return factory

    def _one_of(self, value: object, hint: object, path: str, options: Key) -> object:
        hints = alternatives(hint)
        if value is None:
            return None if type(None) in hints else self._wrong(path, hint, value)
        given = [one for one in hints if one is not type(None)]
        if len(given) == 1:
            return self.convert(value, given[0], path, options)
        fitting: list[str] = []
        for one in sorted(given, key=lambda one: type(value) is not bare(one)):
            attempt = _Reading()
            converted = attempt.convert(value, one, path, options)
            if not attempt.faults:
                self.deferred += attempt.deferred
                return converted
            if type(value) is bare(one):
                fitting += attempt.faults
        if not fitting:
            return self._wrong(path, hint, value)
        self.faults += fitting
        return _NOTHING

    def _items(self, value: ListConfig, hints: tuple[object, ...], path: str, options: Key) -> object:
        same = len(hints) == 2 and hints[1] is Ellipsis
        if not same and len(hints) != len(value):
            return self._wrong(path, f"a list of {len(hints)} values", value)
        items = []
        for index, item in enumerate(value):
            items.append(self.convert(item, hints[0] if same else hints[index], f"{path}[{index}]", options))
        return _NOTHING if any(item is _NOTHING for item in items) else tuple(items)

    def _scalar(self, value: object, hint: object, path: str, options: Key) -> object:
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            for choice in choices:
                if value == choice or (isinstance(choice, str) and str(value) == choice):
                    return choice
            remedy = " or ".join(f"{path}={choice}" for choice in choices)
            self.faults.append(f"{path} must be a known choice, got {value!r}: use {remedy}")
            return _NOTHING
        if not accepts(hint, value):
            return self._wrong(path, hint, value)
        kind = bare(hint)
        if kind is str:
            return self._word(str(value), path, options)  # also of a number, such as name=7
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            fault = range_of(hint).fault(value)
            if fault is not None:
                self.faults.append(f"{path} must be {fault}, got {value}")
                return _NOTHING
        return float(value) if kind is float and isinstance(value, int) else value

    def _word(self, value: str, path: str, options: Key) -> object:
        if not value:
            self.faults.append(f"{path} must not be empty: add a value, or leave {path}= out")
            return _NOTHING
        if options.folder and (value in (".", "..") or re.search(r"[/\\\x00-\x1f]", value) or len(value) > LONGEST):
            self.faults.append(f"{path} must be the name of a folder, up to {LONGEST} letters, got {value[:LONGEST]!r}")
            return _NOTHING
        return value

    def _wrong(self, path: str, hint: object, value: object) -> object:
        plain = OmegaConf.to_container(value) if isinstance(value, (DictConfig, ListConfig)) else value
        self.faults.append(f"{path} must be {hint if isinstance(hint, str) else words(hint)}, got {shown(plain)}")
        return _NOTHING


def _faults_of(make: Callable[[], object]) -> list[str]:
    try:
        make()
    except ConfigError as error:
        return list(error.faults)
    return []


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _unknown(path: str, known: list[str]) -> str:
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    return f"{path} is not a key of this stage" + (f": did you mean {near[0]}?" if near else ": leave it out")


def _read(cfg: DictConfig, record: type[Record], others: Collection[str]) -> tuple[Record, _Reading]:
    reading = _Reading()
    read = reading.record(cfg, record, "", OF_HYDRA | frozenset(others))
    return cast(Record, read), reading


def read(cfg: DictConfig, record: type[Record], others: Collection[str] = (), *, imports: bool = True) -> Record:
    """The configuration as a record.

    Args:
        others: further keys that are allowed: those of other stages.
        imports: whether to import each `_target_` and to build cheap objects in order to check them. If False, this is
            done only after another fault, so that all faults are reported together.

    Raises:
        ConfigError: the message lists each missing or unknown key, wrong type and forbidden value.
    """
    config, reading = _read(cfg, record, others)
    if imports or reading.faults:
        for deferred in reading.deferred:
            reading.faults += deferred.check()
    report_faults(dict.fromkeys(reading.faults))
    return config


def identity(cfg: DictConfig, record: type, others: Collection[str] = ()) -> dict[str, object]:
    """The keys that change the result of a run, flat, resolved and in plain JSON.

    Values that follow from the run folder, such as a path below ``${run_dir}``, are the same for every run, because the
    name of the folder is derived from the identity.

    Raises:
        ConfigError: the configuration is invalid.
    """
    cfg = copy.deepcopy(cfg)
    for folder_key in FOLDER_KEYS:
        cfg[folder_key] = "-"
    reading = _Reading()
    read = reading.record(cfg, record, "", OF_HYDRA | frozenset(others))
    report_faults(reading.faults)
    flat: dict[str, object] = {}
    _flatten(read, "", flat, ())
    # JSON knows no infinity, which is a sensible value of a limit: it becomes a word
    return json.loads(json.dumps(flat, default=str), parse_constant=str)


def sha256_of(content: Mapping[str, object]) -> str:
    """The hash of an `identity`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flatten(value: object, path: str, flat: dict[str, object], uncounted: tuple[str, ...]) -> None:
    if isinstance(value, Factory):
        _flatten(value.content, path, flat, value.uncounted)
    elif isinstance(value, Mapping):
        for name, child in value.items():
            if name not in uncounted:
                _flatten(child, _join(path, name), flat, ())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name, (_, options) in keys_of(type(value)).items():
            counts = options.identity and (
                not options.counts_with or any(getattr(value, switch) for switch in options.counts_with)
            )
            if counts:
                _flatten(getattr(value, name), path if options.rest else _join(path, name), flat, ())
    else:
        flat[path] = list(value) if isinstance(value, tuple) else value
