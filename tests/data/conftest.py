import pytest
from hypothesis import settings

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """What is remembered about files stays in the test that asked."""
    monkeypatch.setenv("L2RM_CACHE", str(tmp_path_factory.mktemp("cache")))
