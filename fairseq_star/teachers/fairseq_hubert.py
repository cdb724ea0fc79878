"""fairseq HuBERT checkpoints (``{'cfg', 'task_state', 'model'}``), as ``hubert_base_ls960.pt`` is."""

from dataclasses import fields

from fairseq.models.hubert.hubert import HubertConfig, HubertModel
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

from fairseq_star.checkpoint import config_section
from fairseq_star.errors import StarError
from fairseq_star.frames import FrameGeometry, parse_conv_layers
from fairseq_star.group_norm import use_valid_group_norm
from fairseq_star.teachers.teacher import Teacher

# Of use in pretraining only: HubertModel.forward needs them to mask and to predict units.
PRETRAINING_KEYS = ("mask_emb", "label_embs_concat", "final_proj.", "target_glu.")


def build_teacher(state: dict, *, name: str, valid_group_norm: bool = True) -> Teacher:
    """Build the encoder of a fairseq HuBERT checkpoint and load its weights, every key accounted for.

    ``conv_feature_layers`` is parsed and handed on as a literal, because ``HubertModel`` evaluates it.

    Raises:
        StarError: the checkpoint is of another model, or its config and weights do not fit each other.
    """
    saved_model, saved_task = config_section(state, "model"), config_section(state, "task")
    weights = state.get("model")
    family = saved_model.get("_name")
    if not isinstance(weights, dict) or family is None:
        raise StarError(f"{name} is no fairseq speech checkpoint: it lacks 'cfg' with a model or the weights 'model'")
    if family != "hubert":
        raise StarError(f"{name} holds a {family!r} model; a fairseq HuBERT checkpoint is needed as the teacher")

    try:
        conv_layers = parse_conv_layers(saved_model.get("conv_feature_layers", HubertConfig.conv_feature_layers))
    except StarError as error:
        raise StarError(f"{name}: {error}") from error
    model_config = _from_saved(HubertConfig, saved_model)
    model_config.conv_feature_layers = repr([tuple(layer) for layer in conv_layers])
    model_config.label_rate = 1.0  # Of use for pretraining targets only.
    task_config = _from_saved(HubertPretrainingConfig, saved_task)

    try:
        model = HubertModel(model_config, task_config, dictionaries=[None])
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise StarError(f"{name}: its model config does not build a HuBERT ({error})") from error
    model.remove_pretraining_modules()
    model.mask_emb = None
    _load_weights(model, weights, name)
    if valid_group_norm:
        use_valid_group_norm(model.feature_extractor)
    return Teacher(
        model,
        geometry=FrameGeometry.of(conv_layers),
        sample_rate=int(task_config.sample_rate),
        normalize=bool(task_config.normalize),
    )


def _from_saved(config_class: type, saved: dict):
    """The saved values of the fields this fairseq knows; a value an old checkpoint lacks keeps its default."""
    known = {field.name for field in fields(config_class)} - {"_name"}
    return config_class(**{key: value for key, value in saved.items() if key in known})


def _load_weights(model: HubertModel, weights: dict, name: str) -> None:
    wanted = {key: value for key, value in weights.items() if not key.startswith(PRETRAINING_KEYS)}
    expected = model.state_dict()
    problems = [f"{key} is missing" for key in expected if key not in wanted]
    problems += [f"{key} is unknown" for key in wanted if key not in expected]
    problems += [
        f"{key} is {tuple(getattr(wanted[key], 'shape', ()))} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in wanted and getattr(wanted[key], "shape", None) != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise StarError(f"{name}: weights and model config do not fit each other ({problems[0]}{more})")
    model.load_state_dict(wanted)
