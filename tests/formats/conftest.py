"""A good teacher's content, for tests that damage it."""

import pytest

from tests.support import tiny


@pytest.fixture(scope="session")
def good_state() -> dict:
    return tiny.hubert_state()
