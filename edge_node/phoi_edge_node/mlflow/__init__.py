"""MLflow over its REST interface: usage out, champions and their bundles in. No mlflow import."""
