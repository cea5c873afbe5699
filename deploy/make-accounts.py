"""Make the account that sweeps write to MLflow with: `sweep`, which is no administrator and owns what it creates.

Runs once in the service `accounts` of docker-compose.yml. A second run changes nothing, and after a change of the
password's file it brings the account up to that. Everybody else's account is made by hand (docs/team.md).
"""

import os
import sys
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

ADMIN = "admin"
SWEEP = "sweep"


def password(variable: str) -> str:
    """The content of the file that `variable` names."""
    return Path(os.environ[variable]).read_text(encoding="utf-8").strip()


def speak_as(account: str, secret: str) -> AuthServiceClient:
    """MLflow's client takes its credentials from this process' environment, and from nowhere else."""
    os.environ.update(MLFLOW_TRACKING_USERNAME=account, MLFLOW_TRACKING_PASSWORD=secret)
    return AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])


def make(account: str, secret: str) -> str:
    """Make `account`, or bring its password up to `secret`. Returns what was done."""
    admin = speak_as(ADMIN, password("ADMIN_PASSWORD_FILE"))
    try:
        admin.get_user(account)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        admin.create_user(account, secret)
        return "made"
    admin.update_user_password(account, secret)
    return "up to date"


if __name__ == "__main__":
    try:
        print(f"account {SWEEP}: {make(SWEEP, password('SWEEP_PASSWORD_FILE'))}")
    except (MlflowException, OSError) as error:
        sys.exit(f"account {SWEEP} could not be made: {error}")
