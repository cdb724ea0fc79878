"""A run's whole configuration, from the arguments that ``fairseq-hydra-train`` would be given."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from fairseq import utils
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import omegaconf_no_object_check
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_star.errors import StarError
from fairseq_star.tasks.registration import register_all


def run_config(config_dir: str, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration as fairseq does before it trains.

    Args:
        config_dir: folder of the recipes.
        config_name: of one of them, without ``.yaml``.
        overrides: such as ``task.data=DIR``.

    Raises:
        StarError: there is no such recipe, an override is none of its options, or it trains another task.
    """
    if not (Path(config_dir) / f"{config_name}.yaml").is_file():
        raise StarError(f"plan: there is no {config_name}.yaml in --config-dir {config_dir}; name a recipe of it")
    register_all()
    hydra_init(config_name)
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings(), initialize_config_dir(str(Path(config_dir).resolve()), version_base="1.1"):
            warnings.simplefilter("ignore")  # of hydra's, about how fairseq names its schema
            cfg = compose(config_name, overrides=list(overrides))
        if OmegaConf.select(cfg, "task._name") != "star_distillation":
            raise StarError(f"plan: {config_name} trains another task than star_distillation; name a recipe of that")
        utils.import_user_module(cfg.common)
        add_defaults(cfg)
        with omegaconf_no_object_check():
            cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise StarError(f"plan: {str(error).strip().splitlines()[0]} (options as of fairseq-hydra-train)") from error
    OmegaConf.set_struct(cfg, True)
    return cfg
