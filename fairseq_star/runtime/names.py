"""Names that users type, of options and of registered parts: a module of their own because it imports nothing."""

# The students, and the encoder that costs are compared with.
ARCHITECTURES = ("starhubert", "starhubert_l", "starhubert_s", "starhubert_xs", "starhubert_stream")
HUBERT_BASE = "hubert_base"

# Labels that `probe` predicts from features.
PHONE, KEYWORD, SPEAKER = PROBE_TASKS = ("phone", "keyword", "speaker")

# Libraries that `export` writes for; the class of each: ``fairseq_star.deploy.targets``.
TARGETS = ("s3prl", "fairseq", "huggingface", "torchaudio", "torchscript", "onnx", "pt2")
# Options of targets -> argparse's settings of each. An option is an argument of the target's class.
TARGET_OPTIONS = {
    "torchscript": {
        "int8": {
            "action": "store_true",
            "default": False,
            "help": "linear layers in 8 bit: smaller, for CPUs, less exact",
        }
    },
    "onnx": {
        "dynamo": {
            "action": "store_true",
            "default": False,
            "help": "write by torch's present exporter, in half a minute (a streaming student always is)",
        },
        "int8": {
            "action": "store_true",
            "default": False,
            "help": "linear layers in 8 bit, other weights stored in 16: a third of the size or less, less exact",
        },
        "calibration": {
            "metavar": "MANIFEST",
            "default": None,
            "help": "with --int8: take the range of what comes into each layer from this manifest's speech, once and "
            "for all, instead of from each utterance as it comes; the file is judged by other speech of it",
        },
        "int4": {
            "action": "store_true",
            "default": False,
            "help": "weights of linear layers in 4 bit, others stored in 16: smaller still, less exact still",
        },
    },
}

# SUPERB's tasks in the order of its tables.
SUPERB_TASKS = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "ic", "sf", "er", "se")
