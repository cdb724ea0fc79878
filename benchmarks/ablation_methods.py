"""The ways of distilling that ``benchmarks.ablation`` compares: three suites, and each way's twin trained in noise."""

from typing import NamedTuple

from fairseq_star.losses.relations import AttentionMaps, TemporalGramMatrices

STAR = "layer-wise + intra-layer"  # the paper's final choice
NOISY, EQUAL_TIME = " (noisy)", " (equal time)"
UNITS_FILE = "{units}"  # stands for the centroids, which the ablation fits first


class Method(NamedTuple):
    """What differs from the recipe, by section."""

    criterion: dict
    task: dict = {}  # noqa: RUF012
    model: dict = {}  # noqa: RUF012

    @property
    def needs_maps(self) -> bool:
        """Whether attention maps are formed, which no teacher cache keeps."""
        return any(self.criterion.get(name) for name in ("avg_attn_weight", "last_attn_weight"))

    @property
    def needs_units(self) -> bool:
        """Whether centroids must be there."""
        return UNITS_FILE in self.criterion.get("units", ())


RELATIONS = (*TemporalGramMatrices.weights, *AttentionMaps.weights)


def _relations(*names: str, **others: object) -> dict:
    return {"_name": "star_tgm", **{name: float(name in names) for name in RELATIONS}, **others}


BOTH = ("layerwise_weight", "intra_layer_weight")
HIDING = {"mask_prob": 0.5, "mask_length": 10}
# The relations are a thousand times a cross-entropy of units, whose weight makes them alike at the end of the demo.
UNIT_SCALE = 100.0

LOSSES = {
    "frame matching": Method(_relations(frame_mse_weight=1.0)),
    "last-attn": Method(_relations("last_attn_weight")),
    "avg-attn": Method(_relations("avg_attn_weight")),
    "layer-wise": Method(_relations("layerwise_weight")),
    "intra-layer": Method(_relations("intra_layer_weight")),
    STAR: Method(_relations(*BOTH)),
    "all three": Method(_relations(*BOTH, "avg_attn_weight")),
}
OBJECTIVES = {
    "DistilHuBERT-like": Method(
        _relations(frame_l1_weight=1.0, frame_cosine_weight=1.0, frame_layers=[2, 4, 6], frame_student_layers=[6, 6, 6])
    ),
    "ARMHuBERT-like": Method(_relations(frame_mse_weight=1.0), HIDING),
    "units (DiceHuBERT)": Method(_relations(unit_weight=1.0, units=[UNITS_FILE]), HIDING),
    "masked STaR": Method(_relations(*BOTH), HIDING),
    "masked STaR, hidden frames": Method(_relations(*BOTH, tgm_frames="masked"), HIDING),
    "STaR + units": Method(_relations(*BOTH, unit_unmasked_weight=UNIT_SCALE, units=[UNITS_FILE])),
    "masked STaR + units": Method(_relations(*BOTH, unit_weight=UNIT_SCALE, units=[UNITS_FILE]), HIDING),
    STAR: LOSSES[STAR],
}
# The teacher's states as task.teacher_cache keeps them; the demo teacher's are 256 wide.
CACHES = {
    STAR: LOSSES[STAR],
    "int8 cache": Method(_relations(*BOTH), {"teacher_cache_compression": "int8"}),
    "pca cache, half": Method(_relations(*BOTH), {"teacher_cache_compression": "pca", "teacher_cache_dim": 128}),
    "pca cache, a quarter": Method(_relations(*BOTH), {"teacher_cache_compression": "pca", "teacher_cache_dim": 64}),
}
SUITES = {"losses": LOSSES, "objectives": OBJECTIVES, "cache": CACHES}


def in_noise(method: Method, noise: str, rooms: str) -> Method:
    """The same, the student hearing its speech in noise and rooms."""
    heard = {"noise_manifest": noise, "noise_snr": [0.0, 20.0], "reverb_manifest": rooms, "reverb_prob": 0.3}
    return method._replace(task=method.task | heard)
