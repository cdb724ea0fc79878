"""First weights, losses, hidden states and layouts of exports are what they were (``golden.py``)."""

import copy
import json
import re

import pytest

from tests.support import golden
from tests.support.runs import NO_DROPOUT


@pytest.fixture(scope="module")
def kept() -> dict:
    return json.loads(golden.FILE.read_text(encoding="utf-8")) if golden.FILE.exists() else {}


def test_all_is_as_it_was(kept, train, tmp_path):
    found = golden.measure(tmp_path)
    for name, options in {
        "paper": [],
        "reimplementation": ["criterion.layer_convention=reimplementation", "criterion.avg_attn_weight=1.0"],
    }.items():
        finished = train(*options, *NO_DROPOUT, save_dir=tmp_path / name)
        assert finished.returncode == 0, finished.stderr
        losses = re.findall(r" loss=([0-9.]+)", finished.stdout)
        found["losses"][f"training, {name}"] = [float(loss) for loss in losses]
    if not golden.FILE.exists():
        golden.FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        pytest.fail(f"{golden.FILE} was written anew; look at its difference from before")
    assert golden.differences(found, kept) == []


def test_a_change_of_any_value_shows(kept):
    for kind, values in kept.items():
        for name, value in values.items():
            changed = copy.deepcopy(kept)
            changed[kind][name] = (
                "another" if isinstance(value, str) else [value[0], value[1] + 1e-4 * value[0], *value[2:]]
            )
            assert len(golden.differences(changed, kept)) == 1, (kind, name)
