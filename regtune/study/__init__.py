"""A study and its trials in Optuna's database: open, ask, tell and read."""
