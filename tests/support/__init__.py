"""What the tests share: tiny models and corpora, cases, comparisons, and a trainer to run."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
