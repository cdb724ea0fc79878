"""The demo corpus's speakers: eSpeak NG accents and voice variants, each with its own pitch, range and speed."""

import itertools
from typing import NamedTuple

import numpy as np

from fairseq_star.errors import StarError

ACCENTS = ["en", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"]
# Whispering, robot and effect variants are left out. Those for dev are never a training speaker's, whatever the seed.
TRAIN_VARIANTS = {
    "F": ["f1", "f2", "f3", "f4", "Alicia", "Andrea", "aunty", "belinda", "linda", "steph", "steph2", "anika"],
    "M": [
        "m1", "m2", "m3", "m4", "m5", "m6", "m8", "Alex", "Andy", "Diogo", "Gene", "Henrique", "Jacky", "Lee", "Marco",
        "Mario", "Mike", "Reed", "adam", "antonio", "benjamin", "boris", "caleb", "ed", "gustave", "iven", "john",
        "max", "michel", "norbert", "pablo", "paul", "pedro", "quincy", "robert", "sandro", "victor",
    ],
}  # fmt: skip
DEV_VARIANTS = {"F": ["f5", "Annie", "steph3"], "M": ["m7", "Denis", "Hugo", "david", "miguel", "travis"]}


class Speaker(NamedTuple):
    """``speaker`` is the identity (four digits: 1xxx train, 2xxx dev), the rest settings of eSpeak NG (espeak.py)."""

    speaker: str
    subset: str
    sex: str
    voice: str
    rate: int
    pitch: int
    pitch_range: int


def make_speakers(rng: np.random.Generator, num_train: int, num_dev: int) -> list[Speaker]:
    """Draw speakers, no accent-and-variant pair twice, women and men alternately.

    Raises:
        StarError: fewer than one, or more than there are pairs.
    """
    speakers = []
    for subset, variants, count, first in (
        ("train", TRAIN_VARIANTS, num_train, 1001), ("dev", DEV_VARIANTS, num_dev, 2001)
    ):  # fmt: skip
        most = 2 * len(ACCENTS) * min(map(len, variants.values()))
        if not 1 <= count <= most:
            raise StarError(f"--{subset}-speakers: {count} must be 1 to {most}; choose a number in between")
        pairs = {sex: list(itertools.product(ACCENTS, names)) for sex, names in variants.items()}
        for sex_pairs in pairs.values():
            rng.shuffle(sex_pairs)
        for index in range(count):
            sex = "FM"[index % 2]
            accent, variant = pairs[sex].pop()
            speakers.append(
                Speaker(
                    str(first + index), subset, sex, f"{accent}+{variant}", int(rng.integers(140, 200)),
                    int(rng.integers(30, 71)), int(rng.integers(30, 81)),
                )
            )  # fmt: skip
    return speakers
