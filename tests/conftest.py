"""Fixtures and settings that several kinds of tests share."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings
from support.mlflow_server import mlflow_settings as mlflow_settings

# Tests share their few cores with whatever else runs: how long an example takes says nothing.
settings.register_profile("phoi", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("phoi")


@pytest.fixture(autouse=True)
def _default_logs() -> Iterator[None]:
    """A command under test configures logs for its process; the next test has not asked for it."""
    yield
    structlog.reset_defaults()
