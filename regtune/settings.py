"""Settings: where things lie. Flags come first, then the environment, then `.env`, then these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from regtune.errors import SettingsError


class Settings(BaseSettings):
    """`MLFLOW_TRACKING_URI`, `OPTUNA_STORAGE` and `REGTUNE_*`.

    home: the folder of both databases and all artifacts. storage, tracking_uri: URLs of Optuna's database and of the
    MLflow store or server; SQLite files in `home` by default. data_dir: where .npz data sets lie. workers: how many
    worker processes train; one per core by default.
    """

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    home: Path = Field(default=Path("mlruns"), validation_alias="REGTUNE_HOME")
    storage: str = Field(default="", validation_alias="OPTUNA_STORAGE")
    tracking_uri: str = Field(default="", validation_alias="MLFLOW_TRACKING_URI")
    data_dir: Path | None = Field(default=None, validation_alias="REGTUNE_DATA_DIR")
    workers: int | None = Field(default=None, ge=1, le=256, validation_alias="REGTUNE_WORKERS")

    @field_validator("storage", "tracking_uri")
    @classmethod
    def _no_password(cls, value: str) -> str:
        if value and "://" in value and urlsplit(value).password:
            raise ValueError(
                "a URL with a password ends up in logs and process lists; use the environment or a file"
            )
        return value

    @property
    def storage_url(self) -> str:
        """SQLAlchemy URL of Optuna's database."""
        return self.storage or f"sqlite:///{self.home.resolve() / 'studies.db'}"

    @property
    def mlflow_uri(self) -> str:
        """URI of the MLflow store or server."""
        return self.tracking_uri or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        """Folder of all artifacts: `runs/` is MLflow's, `trials/UID/` are the trials' own."""
        return self.home.resolve() / "artifacts"


def load_settings(**flags: Any) -> Settings:
    """Settings with `flags` (None means not given) on top. Raises SettingsError with one line a mistake."""
    given = {
        str(Settings.model_fields[key].validation_alias): value
        for key, value in flags.items()
        if value is not None
    }
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [
            f"{found['loc'][0]}: {found['msg'].removeprefix('Value error, ')}" for found in error.errors()
        ]
        raise SettingsError("\n".join(lines)) from None
