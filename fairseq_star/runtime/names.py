"""Names that users type, of options and of registered parts: a module of their own because it imports nothing."""

# The students, and the encoder that costs are compared with.
ARCHITECTURES = ("starhubert", "starhubert_l", "starhubert_s", "starhubert_xs", "starhubert_stream")
HUBERT_BASE = "hubert_base"

# Labels that `probe` predicts from features.
PHONE, KEYWORD, SPEAKER = PROBE_TASKS = ("phone", "keyword", "speaker")

# Libraries that `export` writes for; the class of each: ``fairseq_star.deploy.targets``.
TARGETS = ("s3prl", "fairseq", "huggingface", "torchaudio", "torchscript", "onnx", "sherpa-onnx", "pt2")
# Options of targets -> argparse's settings of each. An option is an argument of the target's class.
_FLAG = {"action": "store_true", "default": False}
_INT8 = {
    **_FLAG,
    "help": "quantize linear layers to int8, store other weights in 16 bits: a third of the size or less, less exact",
}
_INT4 = {
    **_FLAG,
    "help": "quantize weights of linear layers to int4, store others in 16 bits: even smaller, even less exact",
}
TARGET_OPTIONS = {
    "torchscript": {"int8": {**_FLAG, "help": "quantize linear layers to int8: smaller, for CPUs, less exact"}},
    "onnx": {
        "dynamo": {**_FLAG, "help": "use torch's newer exporter, in half a minute (streaming students always do)"},
        "int8": _INT8,
        "calibration": {
            "metavar": "MANIFEST",
            "default": None,
            "help": "with --int8: fix each layer's input range by speech of this manifest, instead of measuring it in "
            "each utterance; the file is then checked on other speech of it",
        },
        "int4": _INT4,
    },
    "sherpa-onnx": {"int8": _INT8, "int4": _INT4},
}

# Formats of raw samples that `stream` takes, as ffmpeg names them.
RAW_FORMATS = ("s16le", "s16be", "s32le", "f32le", "f32be")

# SUPERB's tasks in the order of its tables.
SUPERB_TASKS = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er", "se")
