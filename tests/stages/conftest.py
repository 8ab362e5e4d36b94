"""What the tests of stages leave out: pictures of results, which have tests of their own."""

from collections.abc import Iterator

import pytest

from nas_transfer.stages.common import analysis


@pytest.fixture(scope="session", autouse=True)
def no_charts() -> Iterator[None]:
    """Draw no chart of an analysis, since that takes longer than a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "draw_analysis", lambda *_: [])
        yield
