"""Settings of an experiment: s3prl's, the paper's changes, the user's; and the differences from s3prl's.

Dotted paths name them, ``optimizer.lr`` or ``downstream_expert.datarc.batch_size``, as in s3prl's override without its
``config.``.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_star.errors import StarError
from fairseq_star.runtime.names import SUPERB_TASKS

_PUBLISHED = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("recipes.yaml")))
RECIPES = _PUBLISHED["tasks"]  # s3prl's configuration of each task
SCHEDULER = {
    task: {"name": "linear_schedule_with_warmup", "num_warmup_steps": steps}
    for task, steps in _PUBLISHED["warmup"].items()
}
# STaR's experiments: SID at ten times s3prl's rate, with the schedulers that s3prl's files have commented out.
PAPER_SID_LR = 1e-3
# s3prl removes the last checkpoint before it writes the next: with one more, a kill in between costs no run.
KEPT_CHECKPOINTS = 2
RATE_GRID = (1e-2, 1e-3, 1e-4, 1e-5)


def settings(task: str, *, convention: str, own: Mapping[str, object]) -> dict:
    """Return s3prl's configuration of ``task`` with changes; paths of corpora are not in it yet.

    Args:
        convention: ``paper`` (STaR's changes: scheduler on, SID at ten times the rate) or ``s3prl``.
        own: the user's changes, dotted path -> value; they win.

    Raises:
        StarError: a path leads through a value that is no group of settings.
    """
    config = copy.deepcopy(RECIPES[task])
    if config["runner"].get("max_keep") == 1:
        config["runner"]["max_keep"] = KEPT_CHECKPOINTS
    if convention == "paper" and task in SCHEDULER:
        config["scheduler"] = dict(SCHEDULER[task])
        if task == "sid":
            config["optimizer"]["lr"] = PAPER_SID_LR
    for path, value in own.items():
        put(config, path, value, f"{task}.{path}")
    return config


def put(config: dict, path: str, value: object, option: str) -> None:
    """Set the value at a dotted path, making missing groups; ``option`` is its name in messages.

    Raises:
        StarError: a path leads through a value that is no group.
    """
    *groups, last = path.split(".")
    for group in groups:
        if not isinstance(config.setdefault(group, {}), dict):
            raise StarError(f"{option}: {group} is a value, not a group of settings; correct the name")
        config = config[group]
    config[last] = value


def flat(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield dotted paths and values."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(task: str, config: Mapping) -> dict[str, tuple[object, object]]:
    """Return differences from s3prl's configuration: path -> (s3prl's value, this one), None for a missing one."""
    theirs, ours = dict(flat(RECIPES[task])), dict(flat(config))
    return {
        path: (theirs.get(path), ours.get(path))
        for path in sorted({*theirs, *ours})
        if theirs.get(path) != ours.get(path)
    }


def parse_changes(changes: list[str]) -> dict[str, dict[str, object]]:
    """Read ``--set TASK.PATH=VALUE`` by task; a value is YAML, with ``1e-4`` as a number.

    Raises:
        StarError: a change of another form.
    """
    found: dict[str, dict[str, object]] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        task, dot, path = name.partition(".")
        if not (equals and dot and path) or task not in SUPERB_TASKS:
            raise StarError(f"--set {change}: must be TASK.SETTING=VALUE, such as asr.optimizer.lr=1e-4; correct it")
        found.setdefault(task, {})[path] = value_of(text, change)
    return found


def value_of(text: str, change: str) -> object:
    """Return a setting's value as OmegaConf reads YAML: ``1e-4`` is a number.

    Raises:
        StarError: it is no YAML.
    """
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise StarError(f"--set {change}: the value is no YAML ({str(error).splitlines()[0]}); correct it") from error
