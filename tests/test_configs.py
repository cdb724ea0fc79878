"""The recipes: each opens with its command, names only options that exist, and says what STAR's recipes say."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import fairseq_star.tasks.registration  # noqa: F401
from fairseq_star.encoder.config import EncoderConfig
from fairseq_star.models.starhubert import StarHubertConfig
from fairseq_star.slicing.shapes import count_parameters, superb_macs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DISTILLATION = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if "_name: star_distillation" in path.read_text(encoding="utf-8")
)
UTTERANCES = {"100h": 28_539, "960h": 281_241}  # LibriSpeech's train-clean-100 and all training sets


def test_the_recipes_are_there():
    recipes = {"starhubert_100h", "starhubert_960h", "starhubert_l_960h", "reimplementation_100h"}
    sliced = {"starhubert_100h_sliced", "starhubert_960h_sliced", "demo_sliced"}
    assert {*recipes, *sliced, "demo", "demo_long"} == set(DISTILLATION)


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_recipe_opens_with_its_command_and_names_only_what_exists(name):
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"fairseq-hydra-train --config-dir configs --config-name {name} " in text.splitlines()[1]
    config = yaml.safe_load(text)
    for section, registry in [
        ("task", TASK_DATACLASS_REGISTRY),
        ("criterion", CRITERION_DATACLASS_REGISTRY),
        ("model", MODEL_DATACLASS_REGISTRY),
    ]:
        options = config[section]
        assert set(options) <= {field.name for field in fields(registry[options["_name"]])}, section


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
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
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
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=False)
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
    """Those of the README's table."""
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Options worth knowing\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return re.findall(r"`(\w+\.\w+)`", " ".join(cells))


@pytest.mark.parametrize("name", DISTILLATION)
def test_logs_lie_with_the_run(name):
    config = OmegaConf.create(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")))
    config.checkpoint.save_dir = "runs/mine"
    assert config.common.tensorboard_logdir == "runs/mine/tensorboard"


@pytest.mark.parametrize("name", DISTILLATION)
def test_every_option_of_the_readme_is_overridden_without_a_plus(name):
    options = options_worth_knowing()
    assert {"task.log_tgm_maps", "task.release_memory", "common.fp16"} < set(options)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.1"):
        config = compose(name, overrides=[f"{option}=1" for option in options])
    assert config.task.log_tgm_maps == 1
