"""Data sets, training, evaluation, export and promotion. Needs torch and MLflow."""
