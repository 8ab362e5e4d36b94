"""The run folder of a stranger: nothing in it runs code, and no name in it leads outside."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import nas_transfer as nt
import nas_transfer.cli  # registers the resolvers
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.runs.atomic import write_text
from nas_transfer.stages.config.trained import with_trained_groups
from nas_transfer.stages.config.trusted import own_targets
from tests.test_cli import forked, sentence

Change = Callable[[DictConfig], None]
MARK = "was-here"
SPY = f"open({MARK!r}, 'a').close()\n\n\nclass Spy:\n    def __init__(self, *args, **kwargs):\n        pass\n"
WRITE = {"path": MARK, "text": "x"}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))


def write_run(folder: Path, change: Change, task: str = "small_det") -> Path:
    """A run folder whose configuration was changed by hand."""
    cfg = composed(f"task={task}", f"data.root={folder}/data")
    OmegaConf.set_struct(cfg, False)
    change(cfg)
    (folder / "run/.hydra").mkdir(parents=True)
    (folder / "run/.hydra/config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return folder / "run"


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from, as it does from the working directory, with a module that leaves a mark."""
    (tmp_path / "spy.py").write_text(SPY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spy", raising=False)
    return tmp_path


def replaced(key: str, value: Any) -> Change:
    return lambda cfg: OmegaConf.update(cfg, key, value, merge=False, force_add=True)


HOSTILE: dict[str, Change] = {
    "a function of Python": replaced("task.build", {"_target_": "os.system", "command": f"touch {MARK}"}),
    "a module beside the run": replaced("task.build", {"_target_": "spy.Spy"}),
    "an unpickling loader": replaced("task.build", {"_target_": "torch.load", "f": MARK, "weights_only": False}),
    "pickled arrays": replaced("supernet", {"_target_": "numpy.load", "file": "x.npy", "allow_pickle": True}),
    "in data": replaced("data", {"_target_": "spy.Spy", "root": None}),
    "as the supernet": replaced("supernet", {"_target_": "spy.Spy", "name": "bignas_nano"}),
    "in an argument": replaced("task.build.detector.min_size", {"_target_": "spy.Spy"}),
    "in a list": replaced("data.split.search_fraction", [{"x": [{"_target_": "spy.Spy"}]}]),
    "in positional arguments": replaced("task.recipe._args_", [{"_target_": "spy.Spy"}]),
    "positional arguments": replaced("task.recipe._args_", ["adamw"]),
    "through a module that the package imports": replaced("task.build._target_", "nas_transfer.tasks.task.torch.load"),
    "through a class of the package": replaced("task.build._target_", "nas_transfer.tasks.pose.PoseTask.mro"),
    "a function of the package that writes": replaced(
        "task.recipe", {"_target_": "nas_transfer.runs.atomic.write_text", **WRITE}
    ),
    "a function of the package that runs a command": replaced(
        "task.recipe", {"_target_": "nas_transfer.api.running.run", "_args_": ["trust=[spy]"]}
    ),
    "Hydra's own instantiation": replaced(
        "task.recipe", {"_target_": "hydra.utils.instantiate", "config": {"_target_": "spy.Spy"}}
    ),
    "a name in another key": replaced("task.build._target_", "${data.extra}"),
    "a reference that makes a mapping": replaced("task.recipe.lr", "${oc.create:{_target_: spy.Spy}}"),
    "a reference that is resolved later": replaced("task.recipe.lr", "\\${oc.create:{_target_: spy.Spy}}"),
    "a nested reference": replaced("task.recipe.lr", "${oc.${data.extra}:x}"),
    "a variable of the environment": replaced("task.cost_classes", "${oc.env:HOME}"),
    "a drawing as an argument": replaced(
        "task.recipe.lr",
        {"_target_": "nas_transfer.data.synthetic.shapes.draw_shapes", "root": MARK, "layout": "coco", "num_train": 1}
        | {"num_val": 1, "image_size": 32, "seed": 0},
    ),
    "no text": replaced("task.build._target_", 7),
    "an empty name": replaced("task.build._target_", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_no_class_that_nobody_vouches_for_is_imported_or_built(inside: Path, what: str) -> None:
    def change(cfg: DictConfig) -> None:
        cfg.data.extra = "spy.Spy"
        HOSTILE[what](cfg)

    run = write_run(inside, change)
    with pytest.raises(ConfigError) as caught:
        with_trained_groups(composed("stage=predict", f"weights={run}", "images=x"))
    assert f"{run}/.hydra/config.yaml" in str(caught.value)
    assert ": " in str(caught.value)
    with pytest.raises(ConfigError):
        nt.load(run)
    assert not (inside / MARK).exists()
    assert "spy" not in sys.modules


STAGES = {
    "predict": ["images=."], "export": [], "evaluate": ["task=small_det", "data.root=data"],
    "finetune": ["task=small_det", "data.root=data"], "search": ["task=small_det", "data.root=data"],
    "report": ["runs_in=run"],
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_a_strangers_code_alone(inside: Path, stage: str) -> None:
    def change(cfg: DictConfig) -> None:
        for key in ("data", "supernet", "task.build", "trainer"):
            OmegaConf.update(cfg, f"{key}._target_", "spy.Spy")
        cfg.stage.run, cfg.stage.config = "spy.Spy", "spy.Spy"

    run = write_run(inside, change)
    (run / "run.json").write_text('{"format": 1}')
    weights = [] if stage == "report" else ["weights=run"]
    done = forked(inside, f"stage={stage}", *weights, *STAGES[stage], code=0 if stage == "report" else 2)
    assert not (inside / MARK).exists()
    if stage in ("predict", "export"):
        assert sentence(done) == (
            "error: task.build._target_ in run/.hydra/config.yaml names spy.Spy, which is not part of this program: "
            "if you trust whoever made the run, add trust=[spy]"
        )


@pytest.mark.slow
def test_a_trusted_module_vouches_for_what_it_defines_and_for_nothing_else(inside: Path) -> None:
    (inside / "mine.py").write_text("import os\nfrom torch import nn\n\n\nclass Mine:\n    inner = os\n")
    for name, sound in (("Mine", True), ("os.system", False), ("nn.Linear", False), ("Mine.inner.system", False)):
        run = write_run(inside / name, replaced("task.build._target_", f"mine.{name}"))
        cfg = composed("stage=export", f"weights={run}", "trust=[mine]")
        if sound:
            assert with_trained_groups(cfg).task.build._target_ == "mine.Mine"
            assert with_trained_groups(composed("stage=export", f"weights={run}", "trust=mine")).trust == "mine"
        else:
            with pytest.raises(ConfigError, match=rf"names mine\.{name}, which trust=\[mine\] does not define"):
                with_trained_groups(cfg)
    both = write_run(inside / "both", lambda cfg: cfg.merge_with({"task": {"build": {"_target_": "mine.Mine"}}}))
    OmegaConf.save(
        OmegaConf.merge(OmegaConf.load(both / ".hydra/config.yaml"), {"data": {"_target_": "spy.Spy"}}),
        both / ".hydra/config.yaml",
    )
    with pytest.raises(ConfigError, match=r"data\._target_ .* names spy\.Spy"):
        with_trained_groups(composed("stage=export", f"weights={both}", "trust=[mine]"))
    assert not (inside / MARK).exists()
    with pytest.raises(ConfigError, match="trust must name modules"):
        with_trained_groups(composed("stage=export", f"weights={both}", "trust=['mine; os']"))


def test_what_the_command_itself_names_is_trusted(inside: Path) -> None:
    run = write_run(inside, replaced("task.build._target_", "mine.Mine"))
    cfg = composed("stage=export", f"weights={run}", "task=small_det", "task.build._target_=mine.Mine")
    assert with_trained_groups(cfg).task.build._target_ == "mine.Mine"


def test_the_classes_of_this_program_are_those_of_its_configuration() -> None:
    assert "nas_transfer.tasks.detection.DetectionTask" in own_targets()
    assert "nas_transfer.supernet.mbconv.MBConvTable" in own_targets()
    assert "nas_transfer.data.split.Split" in own_targets()
    assert all(name.startswith("nas_transfer.") for name in own_targets())
    assert f"{write_text.__module__}.write_text" not in own_targets()
    for path in (conf_dir() / "task").glob("*.yaml"):
        assert OmegaConf.load(path).task.build._target_ in own_targets()


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "task: [", "task: {name: x}\ndata: 1\nsupernet: {}\nseed: 0\n", "\x00", "a: &a [x]\nb: [*a, *a]\n",
        "task: !!python/object/apply:os.system ['touch was-here']\n", "{" * 2000, "x" * 2_000_000,
        "task: {name: x}\ndata: {root: r}\nsupernet: {}\n",
        "task: {name: x, build: {a: '${missing}'}}\ndata: {root: r}\nsupernet: {_target_: t}\nseed: 0\n",
        "task: {name: x, build: {a: '${task.build}'}}\ndata: {root: r}\nsupernet: {_target_: t}\nseed: 0\n",
    ],
)  # fmt: skip
def test_a_damaged_configuration_gives_one_sentence(inside: Path, text: str) -> None:
    (inside / "run/.hydra").mkdir(parents=True)
    (inside / "run/.hydra/config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run/\.hydra/config\.yaml") as caught:
        with_trained_groups(composed("stage=export", "weights=run"))
    assert "\n" not in str(caught.value)
    assert not (inside / MARK).exists()


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "..", "", "a/b", "a\\b", "a\nb", 7, None, ["x"]])
def test_the_task_of_a_run_names_no_folder_elsewhere(inside: Path, name: object) -> None:
    run = write_run(inside, replaced("task.name", name))
    done = forked(inside, "stage=predict", f"weights={run}", "images=.", "runs=here/runs", code=2)
    assert f"task.name in {run}/.hydra/config.yaml must be the name of a folder" in sentence(done)
    assert sorted(os.listdir(inside)) == ["run", "spy.py"]


def test_sources_of_a_run_stay_in_the_folder_that_the_command_names(inside: Path) -> None:
    for value in ("/etc/passwd", "../../secret.json"):
        run = write_run(inside / value.strip("./")[:3], replaced("data.sources.val_annotations", value))
        command = ["stage=export", f"weights={run}", "data.root=mine"]
        with pytest.raises(ConfigError, match=r"data\.sources\.val_annotations in .* must lie in data\.root"):
            with_trained_groups(composed(*command))


def test_a_run_has_its_dataset_drawn_in_the_usual_places_only(
    inside: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("home") / "shapes"
    command = ["stage=export", f"weights={write_run(inside, replaced('data.root', str(elsewhere)), 'shapes_cls')}"]
    with pytest.raises(ConfigError, match=r"data\.root in .* is .*home\d+/shapes, where no dataset is: add data\.root"):
        with_trained_groups(composed(*command))
    assert with_trained_groups(composed(*command, f"data.root={elsewhere}")).data.root == str(elsewhere)
    elsewhere.mkdir()
    (elsewhere / "README.txt").touch()
    assert with_trained_groups(composed(*command)).data.root == str(elsewhere)
    monkeypatch.setenv("NAS_TRANSFER_DATA", str(inside / "drawn"))
    usual = write_run(
        inside / "usual", replaced("data.root", "${oc.env:NAS_TRANSFER_DATA,data}/shapes_cls"), "shapes_cls"
    )
    with_trained_groups(composed("stage=export", f"weights={usual}"))
