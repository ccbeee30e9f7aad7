"""What `mlflow-register` and models from `mlflow:/` share: a client of MLflow servers, in a process of its own."""
