"""Recipes as one table each, to be changed and written to a file of their own."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


def read_recipe(path: Path) -> dict:
    """Return a recipe's options by section, those of the files that its defaults list names included.

    Options of ``model`` that the architecture sets are left out, and so is all that only fairseq's schema holds.

    Args:
        path: such as ``configs/demo.yaml``. A file without a defaults list is a whole recipe.
    """
    ConfigStore.instance().repo.pop(path.name, None)  # fairseq's schema, where this process has composed the recipe
    with initialize_config_dir(str(path.parent.resolve()), version_base="1.1"):
        config = OmegaConf.to_container(compose(path.stem, return_hydra_config=True))
    config["hydra"] = {option: config["hydra"][option] for option in ("run", "output_subdir", "job_logging")}
    config["model"] = {option: value for option, value in config["model"].items() if value != MISSING}
    return config
