"""What users and their programs rely on stays as it is, whatever is moved inside (`surface`)."""

from __future__ import annotations

import pytest
from tests.house.surface import TEXTS, compare


@pytest.mark.parametrize("name", TEXTS)
def test_the_public_surface_is_the_one_that_is_stored(name: str) -> None:
    compare(name, TEXTS[name]())
