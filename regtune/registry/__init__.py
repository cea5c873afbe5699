"""The registry: versions of models in MLflow, their evidence, their gates, the aliases that deployments follow."""
