"""Make a small synthetic corpus for each of SUPERB's tasks, in the layout of the data set that s3prl reads there.

    python manifests/demo/superb.py OUT [--seed 0]

eSpeak NG synthesizes them, so that every label is true by construction. OUT/superb.yaml lists them for ``fairseq-star
superb``, with few steps and small heads. The corpora are far too small to evaluate a model; they show that the tasks
run. The same arguments give the same audio. Needs ``pip install "fairseq-star[demo]"``.
"""

import argparse
import os
import shutil
from pathlib import Path

import numpy as np
import yaml

from fairseq_star.errors import StarError
from manifests.demo import keywords
from manifests.demo.espeak import EspeakError
from manifests.demo.speakers import make_speakers
from manifests.demo.superb_sets import MAKERS
from manifests.preparing import run_script

TRAIN_SPEAKERS, TEST_SPEAKERS = 8, 4
SMALL_RNN = {"RNNs.dim": [64, 64], "project_dim": 64}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line described above.

    Raises:
        StarError: a negative seed, OUT is not empty, or eSpeak NG is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; new or empty")
    parser.add_argument("--seed", type=int, default=0, help="decides voices, texts, noise (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise StarError("--seed must not be negative; correct the option")
    out = options.out.absolute()
    if (out / "superb.yaml").exists():
        print(f"{options.out}: is already there")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StarError(f"{options.out}: is not empty; name a folder that is new or empty")
    partial = out.with_name(f".{out.name}.partial")  # an incomplete corpus must not look like a complete one
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _make(partial, out, options.seed)
        os.replace(partial, out)
    except EspeakError as error:
        raise StarError(f"demo corpora: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{options.out}: {len(list(out.rglob('*.wav'))) + len(list(out.rglob('*.flac')))} files, superb.yaml")


def _make(folder: Path, out: Path, seed: int) -> None:
    """Make all corpora in ``folder``, which will be moved to ``out``."""
    from tqdm import tqdm

    folder.mkdir(parents=True)
    speakers = make_speakers(np.random.default_rng(seed), TRAIN_SPEAKERS, TEST_SPEAKERS)
    for number, (name, make) in enumerate(tqdm(MAKERS.items(), "corpora", disable=None)):
        make(folder / name, speakers, np.random.default_rng([seed, number]), out / name)
    parts = ["--train-speakers", "4", "--valid-speakers", "2", "--test-speakers", "2", "--seed", str(seed)]
    keywords.main([str(folder / "speech_commands"), *parts])
    (folder / "superb.yaml").write_text(yaml.safe_dump(description(out), sort_keys=False), encoding="utf-8")


def description(out: Path) -> dict:
    """Return the content of ``superb.yaml``: folders, and settings that make the tasks small."""
    speech = out / "LibriSpeech"
    return {
        "sizes": "any",
        "corpora": {
            "librispeech": str(speech),
            "speech_commands": str(out / "speech_commands"),
            "quesst14": str(out / "quesst14Database"),
            "voxceleb1": str(out / "VoxCeleb1"),
            "librimix": str(out / "Libri2Mix"),
            "fluent_speech_commands": str(out / "fluent_speech_commands_dataset"),
            "snips": str(out / "SNIPS"),
            "iemocap": str(out / "IEMOCAP"),
            "voicebank": str(out / "noisy-vctk-16k"),
        },
        "settings": {
            "all": {"scheduler": None},
            "pr": {
                **_few_steps(100),
                "runner.gradient_accumulate_steps": 1,
                "downstream_expert.corpus.lexicon": [str(speech / "lexicon.txt")],
                "downstream_expert.corpus.batch_size": 4,
                "downstream_expert.corpus.num_workers": 0,
                "downstream_expert.text.vocab_file": str(speech / "phones.txt"),
            },
            "asr": {
                **_few_steps(30),
                "optimizer.lr": 1e-3,
                "specaug": None,
                "downstream_expert.datarc.batch_size": 4,
                "downstream_expert.datarc.num_workers": 0,
                "downstream_expert.datarc.dict_path": str(speech / "char.dict"),
                **{f"downstream_expert.modelrc.{path}": value for path, value in SMALL_RNN.items()},
            },
            "ks": {
                **_few_steps(60),
                "optimizer.lr": 1e-3,
                "downstream_expert.datarc.batch_size": 16,
                "downstream_expert.datarc.num_workers": 0,
            },
            "qbe": {"downstream_expert.datarc.num_workers": 0, "downstream_expert.max_workers": 1},
            "sid": {
                **_few_steps(40),
                "runner.gradient_accumulate_steps": 1,
                "optimizer.lr": 1e-3,
                "downstream_expert.datarc.num_workers": 0,
                "downstream_expert.datarc.meta_data": str(out / "VoxCeleb1" / "veri_test_class.txt"),
            },
            "asv": {
                **_few_steps(20),
                "runner.gradient_accumulate_steps": 1,
                "downstream_expert.datarc.num_workers": 0,
                "downstream_expert.datarc.train_meta_data": str(out / "VoxCeleb1" / "dev_speaker_ids.txt"),
                "downstream_expert.datarc.dev_meta_data": str(out / "VoxCeleb1" / "dev_meta_data.txt"),
                "downstream_expert.datarc.test_meta_data": str(out / "VoxCeleb1" / "voxceleb1_test_v2.txt"),
                "downstream_expert.modelrc.input_dim": 64,
                "downstream_expert.modelrc.module_config.XVector.agg_dim": 96,
            },
            "sd": {
                **_few_steps(40),
                "runner.gradient_accumulate_steps": 1,
                "optimizer.lr": 1e-3,
                "downstream_expert.loaderrc.num_workers": 0,
                "downstream_expert.loaderrc.train_batchsize": 2,
                "downstream_expert.modelrc.hidden_size": 64,
            },
            "ic": {
                **_few_steps(60),
                "optimizer.lr": 1e-3,
                "downstream_expert.datarc.train_batch_size": 8,
                "downstream_expert.datarc.num_workers": 0,
            },
            "sf": {
                **_few_steps(80),
                "optimizer.lr": 1e-3,
                "specaug": None,
                "downstream_expert.corpus.batch_size": 4,
                "downstream_expert.corpus.num_workers": 0,
                "downstream_expert.text.vocab_file": str(out / "SNIPS" / "characters.txt"),
                **{f"downstream_expert.model.{path}": value for path, value in SMALL_RNN.items()},
            },
            "er": {
                **_few_steps(60),
                "runner.gradient_accumulate_steps": 1,
                "optimizer.lr": 1e-3,
                "downstream_expert.datarc.num_workers": 0,
                "downstream_expert.datarc.meta_data": str(out / "IEMOCAP" / "meta_data"),
            },
            "se": {
                **_few_steps(12),
                "downstream_expert.loaderrc.num_workers": 0,
                "downstream_expert.loaderrc.train_batchsize": 2,
                "downstream_expert.modelrc.hidden_size": 64,
            },
        },
    }


def _few_steps(steps: int) -> dict:
    return {
        "runner.total_steps": steps,
        "runner.log_step": steps,
        "runner.eval_step": steps // 2,
        "runner.save_step": steps,
    }


if __name__ == "__main__":
    run_script(main)
