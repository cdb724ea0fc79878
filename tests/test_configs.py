"""The recipes: each opens with its command, says how it differs from the base, and says what STAR's recipes say."""

import re
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.initialize import hydra_init
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import fairseq_star.tasks.registration  # noqa: F401
from benchmarks.recipes import read_recipe
from fairseq_star.analysis.plan.plan import run_config
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.models.starhubert import StarHubertConfig
from fairseq_star.slicing.shapes import count_parameters, superb_macs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DISTILLATION = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if "\ndefaults: [_self_, base, " in path.read_text(encoding="utf-8")
)
REGISTRIES = {
    "task": TASK_DATACLASS_REGISTRY,
    "criterion": CRITERION_DATACLASS_REGISTRY,
    "model": MODEL_DATACLASS_REGISTRY,
}
UTTERANCES = {"100h": 28_539, "960h": 281_241}  # LibriSpeech's train-clean-100 and all training sets


def test_the_recipes_are_there():
    recipes = {"starhubert_100h", "starhubert_960h", "starhubert_l_960h", "reimplementation_100h"}
    sliced = {"starhubert_100h_sliced", "starhubert_960h_sliced", "demo_sliced"}
    assert {*recipes, *sliced, "demo", "demo_long"} == set(DISTILLATION)


def composed(name: str, *overrides: str) -> DictConfig:
    """A recipe as fairseq-hydra-train composes it."""
    hydra_init(name)
    with warnings.catch_warnings(), initialize_config_dir(str(CONFIGS), version_base="1.1"):
        warnings.simplefilter("ignore")
        return compose(name, overrides=list(overrides))


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_recipe_opens_with_its_command_and_is_short(name):
    opening, difference = (CONFIGS / path / f"{name}.yaml" for path in ("", "recipe"))
    lines = opening.read_text(encoding="utf-8").splitlines()
    assert f"fairseq-hydra-train --config-dir configs --config-name {name} " in lines[1]
    assert f"defaults: [_self_, base, recipe: {name}]" in lines[-1]
    assert len(lines) <= 30
    assert len(difference.read_text(encoding="utf-8").splitlines()) <= 30


def test_base_lists_every_option_of_task_criterion_and_model_and_no_other():
    base = OmegaConf.to_container(OmegaConf.load(CONFIGS / "base.yaml"), resolve=False)
    for section, registry in REGISTRIES.items():
        assert set(base[section]) == {field.name for field in fields(registry[base[section]["_name"]])}, section


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_recipe_composes_and_adds_no_option_to_those_of_base(name):
    config = run_config(str(CONFIGS), name, ["task.data=DIR", "task.teacher=TEACHER"])
    assert (config.task._name, config.criterion._name) == ("star_distillation", "star_tgm")
    for section, registry in REGISTRIES.items():
        assert set(config[section]) == {field.name for field in fields(registry[config[section]._name])}, section


@pytest.mark.parametrize("name", ["demo_sliced", "starhubert_l_960h"])
def test_every_option_is_overridden_without_a_plus(name):
    sections = (*REGISTRIES, "optimizer", "lr_scheduler")  # fairseq's own schema lists those of the others
    options = [f"{section}.{option}" for section in sections for option in composed(name)[section]]
    assert len(options) > 110
    config = composed(name, *(f"{option}=1" for option in options))
    assert all(OmegaConf.select(config, option) == 1 for option in options)


def test_sizes_are_those_of_the_architecture_that_is_named():
    def width(*overrides: str) -> int:
        given = ["task.data=DIR", "task.teacher=TEACHER", *overrides]
        return run_config(str(CONFIGS), "starhubert_960h", given).model.encoder_embed_dim

    assert (width(), width("model._name=starhubert_l")) == (432, 480)
    assert width("model._name=starhubert_l", "model.encoder_embed_dim=96") == 96


def test_a_recipe_copied_whole_into_another_folder_is_the_same(tmp_path):
    whole = read_recipe(CONFIGS / "demo.yaml")
    OmegaConf.save(OmegaConf.create(whole), tmp_path / "mine.yaml")
    given = ["task.data=DIR", "task.teacher=TEACHER"]
    assert run_config(str(tmp_path), "mine", given) == run_config(str(CONFIGS), "demo", given)


@pytest.mark.parametrize(
    ("name", "hours", "batch", "epochs"),
    [
        ("starhubert_100h", "100h", 36, 200),
        ("starhubert_960h", "960h", 144, 100),
        ("starhubert_l_960h", "960h", 144, 100),
        ("reimplementation_100h", "100h", 24, 200),
        ("starhubert_100h_sliced", "100h", 36, 20),
        ("starhubert_960h_sliced", "960h", 144, 10),
    ],
)
def test_batch_length_and_warm_up_of_the_recipes(name, hours, batch, epochs):
    config = read_recipe(CONFIGS / f"{name}.yaml")
    optimization, dataset = config["optimization"], config["dataset"]
    assert dataset["train_subset"] == f"train-{hours}"
    assert dataset["batch_size"] * optimization["update_freq"][0] == batch
    assert optimization["max_update"] == pytest.approx(UTTERANCES[hours] / batch * epochs, rel=1e-2)
    assert config["lr_scheduler"]["warmup_updates"] == pytest.approx(0.05 * optimization["max_update"], rel=1e-3)
    expected = "reimplementation" if name.startswith("re") else "paper"
    assert config["criterion"]["layer_convention"] == expected


SLICED = {
    "demo": "demo_sliced",
    "starhubert_100h": "starhubert_100h_sliced",
    "starhubert_960h": "starhubert_960h_sliced",
}


def flat(name: str) -> dict[str, object]:
    config = read_recipe(CONFIGS / f"{name}.yaml")
    return {f"{section}.{option}": value for section in config for option, value in config[section].items()}


@pytest.mark.parametrize("name", SLICED)
def test_a_sliced_recipe_is_another_one_but_for_first_weights_sizes_length_and_rate(name):
    """Its student costs no more than the other's, in parameters and multiply-accumulates."""
    plain, sliced = flat(name), flat(SLICED[name])
    sizes = {"encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads", "conv_feature_layers", "conv_pos",
             "conv_pos_groups"}  # fmt: skip
    may_differ = {f"model.{option}" for option in (*sizes, "init", "target_params", "target_macs")} | {
        "checkpoint.save_dir", "checkpoint.save_interval_updates", "optimization.max_update", "optimization.lr",
        "lr_scheduler.warmup_updates", "dataset.validate_interval",
    }  # fmt: skip
    differing = {option for option in {**plain, **sliced} if plain.get(option) != sliced.get(option)}
    assert differing <= may_differ
    assert (plain["model.init"], sliced["model.init"]) == ("random", "sliced")
    options = {option.removeprefix("model."): value for option, value in plain.items() if option.startswith("model.")}
    names = {field.name for field in fields(StarHubertConfig)}
    settings = {option: value for option, value in options.items() if option in names}
    student = EncoderConfig.of_student(StarHubertConfig(**settings, padded_group_norm=False))
    assert sliced["model.target_params"] == pytest.approx(count_parameters(student), rel=1e-3)
    assert sliced["model.target_macs"] == pytest.approx(superb_macs(student), rel=2e-3)


def options_worth_knowing() -> list[str]:
    """Options in the table of docs/recipes.md."""
    text = (CONFIGS.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = text.split("\n## Options worth knowing\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return re.findall(r"`(\w+\.\w+)`", " ".join(cells))


@pytest.mark.parametrize("name", DISTILLATION)
def test_logs_lie_with_the_run(name):
    config = composed(name, "checkpoint.save_dir=runs/mine")
    assert config.common.tensorboard_logdir == "runs/mine/tensorboard"


@pytest.mark.parametrize("name", DISTILLATION)
def test_every_option_of_the_readme_is_overridden_without_a_plus(name):
    options = options_worth_knowing()
    assert {"task.log_tgm_maps", "task.release_memory", "common.fp16"} < set(options)
    config = composed(name, *(f"{option}=1" for option in options))
    assert config.task.log_tgm_maps == 1
