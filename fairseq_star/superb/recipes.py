"""s3prl's published configuration of each SUPERB task, as its ``downstream/*/*.yaml`` state it; paths are left out.

Facts of s3prl's repository, commit ec8064b (2025-06-13); what they are is documented there in
``downstream/docs/superb.md``. ``tests/superb/test_settings.py`` compares them with a clone where there is one. Here
because s3prl's PyPI packages lack these files, and because a table of results has to say what differed from them.
"""

SPECAUGMENT = {
    "adaptive": False,
    "adaptive_number_ratio": 0.04,
    "adaptive_size_ratio": 0.04,
    "max_n_time_masks": 20,
    "apply_time_warp": True,
    "apply_time_mask": True,
    "apply_freq_mask": True,
    "time_warp_window": 5,
    "time_mask_width_range": [0, 40],
    "freq_mask_width_range": [0, 50],
    "num_freq_mask": 4,
    "num_time_mask": 2,
}
UTTERANCE = {"projector_dim": 256, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}
SNIPS_SPEAKERS = {
    "train_speakers": ["Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"],
    "valid_speakers": ["Aditi", "Amy", "Geraint", "Nicole"],
    "test_speakers": ["Brian", "Emma", "Raveena", "Russell"],
}


def _recurrent() -> dict:
    """The two bidirectional LSTM layers of ASR and SF."""
    return {
        "project_dim": 1024,
        "select": "RNNs",
        "RNNs": {
            "total_rate": -1,
            "module": "LSTM",
            "bidirection": True,
            "dim": [1024, 1024],
            "dropout": [0.2, 0.2],
            "layer_norm": [False, False],
            "proj": [False, False],
            "sample_rate": [1, 1],
            "sample_style": "concat",
        },
    }


def _runner(steps: int, accumulate: int, log: int, evaluate: int, save: int, splits: list[str], **others) -> dict:
    return {
        "total_steps": steps,
        "gradient_clipping": 1,
        "gradient_accumulate_steps": accumulate,
        "log_step": log,
        "eval_step": evaluate,
        "save_step": save,
        "max_keep": 1,
        "eval_dataloaders": splits,
        **others,
    }


def _adam(lr: float, name: str = "Adam") -> dict:
    return {"name": "TorchOptim", "torch_optim_name": name, "lr": lr}


RECIPES = {
    "pr": {
        "runner": _runner(100_000, 2, 100, 1000, 100, ["dev"]),
        "optimizer": _adam(1e-2),
        "downstream_expert": {
            "corpus": {
                "name": "libriphone",
                "lexicon": [
                    "downstream/ctc/lexicon/librispeech-lexicon-200k-g2p.txt",
                    "downstream/ctc/lexicon/librispeech-lexicon-allothers-g2p.txt",
                ],
                "train": ["train-clean-100"],
                "dev": ["dev-clean"],
                "test": ["test-clean"],
                "bucketing": True,
                "batch_size": 16,
                "num_workers": 24,
            },
            "text": {"mode": "word", "vocab_file": "downstream/ctc/vocab/phoneme.txt"},
            "model": {"project_dim": 256, "zero_infinity": True, "select": "FrameLevel"},
            "save_best_on": ["dev"],
            "metric_higher_better": False,
            "metric": ["per"],
        },
    },
    "asr": {
        "runner": _runner(200_000, 1, 100, 2000, 500, ["dev-clean"]),
        "optimizer": _adam(1e-4),
        "specaug": SPECAUGMENT,
        "downstream_expert": {
            "datarc": {
                "train": ["train-clean-100"],
                "dev-clean": ["dev-clean"],
                "dev-other": ["dev-other"],
                "test-clean": ["test-clean"],
                "test-other": ["test-other"],
                "num_workers": 12,
                "train_batch_size": 32,
                "batch_size": 32,
                "eval_batch_size": 1,
                "dict_path": "./downstream/asr/char.dict",
                "zero_infinity": True,
                "decoder_args": {
                    "decoder_type": "None",
                    "nbest": 1,
                    "criterion": "ctc",
                    "beam": 5,
                    "beam_threshold": 25,
                    "lm_weight": 2,
                    "word_score": -1,
                    "unk_weight": "-math.inf",
                    "sil_weight": 0,
                },
            },
            "modelrc": _recurrent(),
        },
    },
    "ks": {
        "runner": _runner(200_000, 1, 100, 5000, 1000, ["dev", "test"]),
        "optimizer": _adam(1e-4),
        "downstream_expert": {"datarc": {"num_workers": 8, "batch_size": 32}, "modelrc": UTTERANCE},
    },
    "qbe": {
        "runner": {},
        "downstream_expert": {
            "max_workers": None,
            "feature_normalization": True,
            "silence_frame": None,
            "datarc": {"num_workers": 8, "batch_size": 1},
            "dtwrc": {
                "dist_method": "cosine_exp",
                "minmax_norm": True,
                "step_pattern": "asymmetric",
                "subsequence": True,
            },
        },
    },
    "sid": {
        "runner": _runner(200_000, 4, 500, 5000, 1000, ["dev", "test"]),
        "optimizer": _adam(1e-4),
        "downstream_expert": {
            "datarc": {
                "meta_data": "./downstream/voxceleb1/veri_test_class.txt",
                "num_workers": 12,
                "train_batch_size": 8,
                "eval_batch_size": 1,
                "max_timestep": 128_000,
            },
            "modelrc": UTTERANCE,
        },
    },
    "asv": {
        "runner": _runner(200_000, 5, 500, 10_000, 10_000, [], gradient_clipping=1.0e3, max_keep=20),
        "optimizer": _adam(1e-4, "AdamW"),
        "downstream_expert": {
            "datarc": {
                "vad_config": {"min_sec": 32_000},
                "train_meta_data": "./downstream/sv_voxceleb1/dev_meta_data/dev_speaker_ids.txt",
                "dev_meta_data": "./downstream/sv_voxceleb1/dev_meta_data/dev_meta_data.txt",
                "test_meta_data": "./downstream/sv_voxceleb1/voxceleb1_test_v2.txt",
                "max_timestep": 128_000,
                "train_batch_size": 10,
                "eval_batch_size": 1,
                "num_workers": 8,
            },
            "modelrc": {
                "module": "XVector",
                "input_dim": 512,
                "agg_module": "SP",
                "utter_module": "UtteranceExtractor",
                "module_config": {"XVector": {"agg_dim": 1500, "dropout_p": 0.0, "batch_norm": False}},
                "ObjectiveLoss": "AMSoftmaxLoss",
                "LossConfig": {"AMSoftmaxLoss": {"s": 30.0, "m": 0.4}},
            },
        },
    },
    "sd": {
        "runner": _runner(30_000, 4, 500, 500, 500, ["dev"]),
        "optimizer": _adam(1e-4),
        "downstream_expert": {
            "datarc": {
                "chunk_size": 2000,
                "subsampling": 1,
                "label_delay": 0,
                "num_speakers": 2,
                "rate": 16_000,
                "frame_shift": None,
            },
            "loaderrc": {"num_workers": 8, "train_batchsize": 8, "eval_batchsize": 1},
            "scorerc": {"save_predictions": True},
            "modelrc": {"rnn_layers": 1, "hidden_size": 512},
        },
    },
    "ic": {
        "runner": _runner(200_000, 1, 100, 5000, 250, ["dev", "test"]),
        "optimizer": _adam(1e-4),
        "downstream_expert": {
            "datarc": {"num_workers": 12, "train_batch_size": 32, "eval_batch_size": 32},
            "modelrc": UTTERANCE,
        },
    },
    "sf": {
        "runner": _runner(200_000, 1, 100, 2000, 500, ["dev"]),
        "optimizer": _adam(1e-4),
        "specaug": SPECAUGMENT,
        "downstream_expert": {
            "corpus": {
                "name": "snips",
                "train": ["train"],
                "dev": ["valid"],
                "test": ["test"],
                "bucketing": True,
                "batch_size": 32,
                "num_workers": 12,
                **SNIPS_SPEAKERS,
            },
            "text": {"mode": "character-slot", "vocab_file": "downstream/ctc/vocab/character.txt"},
            "model": {"zero_infinity": True, **_recurrent()},
            "save_best_on": ["dev"],
            "metric_higher_better": True,
            "metric": [
                "slot_type_f1",
                "slot_value_cer",
                "slot_value_wer",
                "slot_edit_f1_full",
                "slot_edit_f1_part",
                "wer",
                "cer",
            ],
        },
    },
    "er": {
        "runner": _runner(30_000, 8, 500, 1000, 1000, ["dev", "test"]),
        "optimizer": _adam(1e-4),
        "downstream_expert": {
            "datarc": {
                "meta_data": "./downstream/emotion/meta_data",
                "pre_load": True,
                "train_batch_size": 4,
                "eval_batch_size": 4,
                "num_workers": 6,
                "valid_ratio": 0.2,
            },
            "modelrc": UTTERANCE,
        },
    },
    "se": {
        "runner": _runner(150_000, 1, 1250, 1250, 6250, ["dev"], gradient_clipping=1.0, max_keep=100),
        "optimizer": {"name": "AdamW", "lr": 1e-4},
        "downstream_expert": {
            "datarc": {
                "num_speakers": 1,
                "rate": 16_000,
                "src": ["noisy"],
                "tgt": ["clean"],
                "n_fft": 512,
                "win_length": 512,
                "window": "hann",
                "center": True,
            },
            "loaderrc": {"num_workers": 4, "train_batchsize": 8, "eval_batchsize": 1},
            "modelrc": {
                "model": "SepRNN",
                "rnn": "LSTM",
                "rnn_layers": 3,
                "hidden_size": 896,
                "dropout": 0.5,
                "non_linear": "relu",
                "bidirectional": True,
                "loss_type": "MSE",
                "mask_type": "NPSM",
            },
        },
    },
}
# Steps of the warm-up in the scheduler that s3prl's files hold commented out; tasks that are not here have none there.
WARMUP = {"pr": 1400, "asr": 1400, "ks": 1400, "sid": 5000, "asv": 6000, "ic": 1000, "sf": 1400, "er": 1400}
