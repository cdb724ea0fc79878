"""``try_upstream.py UPSTREAM [FILE]``: load an upstream as s3prl's runner does, and print the shape of its output."""

import json
import runpy
import sys
from pathlib import Path

import torch


def main(name: str, file: str | None = None) -> None:
    """Print number and width of its hidden states for a second of audio, and its samples a frame."""
    runpy.run_path(str(Path(__file__).with_name("launch.py")))["stand_in"]()
    from s3prl import hub

    if not hasattr(hub, name):
        sys.exit(f"NameError: s3prl has no upstream {name}")
    upstream = getattr(hub, name)(ckpt=file, model_config=None, refresh=False).eval()
    with torch.no_grad():
        states = upstream([torch.randn(16_000)])["hidden_states"]
    rate = upstream.get_downsample_rates("hidden_states")
    print(json.dumps({"layers": len(states), "width": states[0].shape[-1], "downsample_rate": rate}))


if __name__ == "__main__":
    main(*sys.argv[1:])
