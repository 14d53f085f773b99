"""One real MLflow server for all tests of a session: it takes some seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from phoi_edge_node.settings import MlflowSettings
from phoi_edge_node.stand_ins import mlflow
from phoi_edge_node.stand_ins.program import free_port


@pytest.fixture(scope="session")
def mlflow_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowSettings]:
    """Settings of an edge that reports to a real MLflow server on SQLite."""
    with mlflow.mlflow_server(tmp_path_factory.mktemp("mlflow"), free_port()) as server:
        yield MlflowSettings(tracking_uri=server.url)
