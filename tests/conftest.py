"""Fixtures that several kinds of tests share."""

from support.mlflow_server import mlflow_settings as mlflow_settings
