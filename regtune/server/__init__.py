"""The MLflow server of a folder: its process, its accounts, and the databases that it shows."""
