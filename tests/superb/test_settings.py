"""Settings of the tasks: s3prl's own, the paper's changes, the user's."""

import os
from pathlib import Path

import pytest
import yaml

from fairseq_star.errors import StarError
from fairseq_star.runtime.names import SUPERB_TASKS
from fairseq_star.superb import settings
from fairseq_star.superb.settings import RECIPES, differences, flat
from fairseq_star.superb.tasks import FOLDS, TASKS, experiments

FILES = {
    "pr": "ctc/libriphone.yaml", "asr": "asr/config.yaml", "ks": "speech_commands/config.yaml",
    "qbe": "quesst14_dtw/config.yaml", "sid": "voxceleb1/config.yaml", "asv": "sv_voxceleb1/config.yaml",
    "sd": "diarization/config.yaml", "ic": "fluent_commands/config.yaml", "sf": "ctc/snips.yaml",
    "er": "emotion/config.yaml", "se": "enhancement_stft/configs/cfg_voicebank.yaml",
}  # fmt: skip
CLONE = os.environ.get("S3PRL")  # a clone of s3prl


def test_every_task_has_a_recipe():
    assert tuple(TASKS) == tuple(RECIPES) == SUPERB_TASKS


@pytest.mark.skipif(not CLONE, reason="S3PRL names no clone of s3prl")
@pytest.mark.parametrize("task", FILES)
def test_recipes_are_what_the_clone_has(task):
    theirs = dict(flat(yaml.safe_load((Path(CLONE) / "s3prl" / "downstream" / FILES[task]).read_text())))
    for path, value in flat(RECIPES[task]):
        assert (
            settings.value_of(theirs[path], path) == value if isinstance(theirs[path], str) else theirs[path] == value
        )
    left_out = set(theirs) - set(dict(flat(RECIPES[task])))
    assert all(isinstance(theirs[path], str) or ".RNNs." in path or path.count(".") > 2 or path.endswith("_rate")
               for path in left_out)  # fmt: skip


def test_the_papers_changes():
    paper = {task: settings.settings(task, convention="paper", own={}) for task in TASKS}
    plain = {task: settings.settings(task, convention="s3prl", own={}) for task in TASKS}
    assert paper["sid"]["optimizer"]["lr"] == 10 * plain["sid"]["optimizer"]["lr"]
    assert [task for task in TASKS if "scheduler" not in paper[task]] == ["qbe", "sd", "se"]
    assert not any("scheduler" in config for config in plain.values())
    assert set(differences("ks", plain["ks"])) == {"runner.max_keep"}
    assert differences("qbe", paper["qbe"]) == {}


def test_own_changes_win_and_are_told():
    own = settings.parse_changes(["sid.optimizer.lr=1e-4", "sid.runner.total_steps=10", "asr.specaug=null"])
    config = settings.settings("sid", convention="paper", own=own["sid"])
    assert config["optimizer"]["lr"] == 1e-4
    assert differences("sid", config)["runner.total_steps"] == (200_000, 10)
    assert own["asr"] == {"specaug": None}
    assert RECIPES["sid"]["optimizer"]["lr"] == 1e-4
    assert RECIPES["sid"]["runner"]["total_steps"] == 200_000


@pytest.mark.parametrize("change", ["sid.optimizer.lr", "lr=1", "xx.optimizer.lr=1", "sid.=1"])
def test_a_change_of_another_form_is_told(change):
    with pytest.raises(StarError, match=r"must be TASK\.SETTING=VALUE"):
        settings.parse_changes([change])


def test_a_change_through_a_value_is_told():
    with pytest.raises(StarError, match=r"ks\.optimizer\.lr\.x: lr is a value"):
        settings.settings("ks", convention="paper", own={"optimizer.lr.x": 1})


def test_experiments_are_one_a_task_but_five_of_er():
    assert [one.name for one in experiments(["er", "ks"])] == ["ks", *(f"er-{fold}" for fold in FOLDS)]
    rates = [one.name for one in experiments(["ks", "qbe"], (1e-3, 1e-4))]
    assert rates == ["ks-lr1e-03", "ks-lr1e-04", "qbe"]
    with pytest.raises(StarError, match="--lr auto: s3prl evaluates nothing on dev while it trains asv"):
        experiments(["asv"], (1e-3,))
