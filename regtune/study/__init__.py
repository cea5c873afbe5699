"""A study and its trials in Optuna's database: opened, asked, told and read."""
