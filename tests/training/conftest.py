import pytest
from training_helpers import share_steps


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    with pytest.MonkeyPatch.context() as patch:
        share_steps(patch.setattr)
        yield
