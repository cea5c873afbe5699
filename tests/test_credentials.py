"""Where passwords may come from, where they are refused, and that no refusal repeats them."""

from __future__ import annotations

import os
import shlex
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from regtune import credentials
from regtune.credentials import SECRETS, STORAGE_PASSWORD, TRACKING_USERNAME, in_url, secret, without_secrets
from regtune.errors import SettingsError
from regtune.settings import CHOICE, Settings, load_settings
from regtune.storage import parse_url

Patch = pytest.MonkeyPatch
CANARY = "c4nary-51a9"
NAME = STORAGE_PASSWORD


def private(path: Path, text: str | bytes = f"{CANARY}\n", mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def refused(call: Callable[[], Any], kind: type[Exception] = SettingsError) -> str:
    """What is said when `call` is refused, seen that the whole traceback does not repeat the secret."""
    with pytest.raises(kind) as caught:
        call()
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    return str(caught.value)


def refusal() -> str:
    return refused(lambda: secret(NAME))


def test_a_secret_comes_from_the_environment_a_file_or_dotenv(tmp_path: Path, monkeypatch: Patch) -> None:
    for name in SECRETS:
        assert secret(name) is None
    private(tmp_path / ".env", "".join(f"export {name}='of dotenv'\n" for name in SECRETS))
    for name in SECRETS:
        assert secret(name) == "of dotenv"
        monkeypatch.setenv(f"{name}_FILE", str(private(tmp_path / "secret", "of a file\r\n")))
        assert secret(name) == "of a file"
        monkeypatch.setenv(name, "of the environment")
        assert secret(name) == "of the environment"
        monkeypatch.setenv(name, "")  # is none, and hides no file
        assert secret(name) == "of a file"
    private(tmp_path / ".env", f"{NAME}_FILE=secret\n", 0o644)
    monkeypatch.delenv(f"{NAME}_FILE")
    assert secret(NAME) == "of a file"


def test_dotenv_is_read_as_it_is_written(tmp_path: Path) -> None:
    for line, value in {
        f'{NAME}="two words # and a $HOME"': "two words # and a $HOME",
        f"\ufeff{NAME}=größer": "größer",
        f"{NAME}=": None,
    }.items():
        private(tmp_path / ".env", f"{line}\n# settings\nOTHER=1\n")
        assert secret(NAME) == value


def test_a_file_holds_the_secret_and_a_line_end(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    for content, value in {
        "  spaces count  \n": "  spaces count  ",
        f"\ufeff{CANARY}\r\n\r\n": CANARY,
        "a=b#c'd\"e$f\\g": "a=b#c'd\"e$f\\g",
    }.items():
        private(tmp_path / "secret", content)
        assert secret(NAME) == value


def test_what_is_no_line_of_text_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    ends = (b"\nanother line\n", b"\0", b"\x1b[2J", "\u2028".encode(), b"\xff")
    for content in (b"\n", *(CANARY.encode() + end for end in ends)):
        private(tmp_path / "secret", content)
        assert refusal() == f"{NAME}_FILE: {tmp_path}/secret: expected one line of text, the secret"
    monkeypatch.setenv(NAME, f"{CANARY}\r\nX-Header: 1")
    assert refusal() == f"{NAME}: expected one line of text, the secret"


def test_a_file_that_others_may_read_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    path = private(tmp_path / "a secret")
    (tmp_path / "link").symlink_to(path)
    for name, mode in (("a secret", 0o640), ("a secret", 0o601), ("link", 0o610)):
        path.chmod(mode)
        monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / name))
        assert refusal().endswith(f"(mode {mode:04o}); try: chmod 600 {shlex.quote(str(tmp_path / name))}")
        path.chmod(0o400)
        assert secret(NAME) == CANARY


def test_dotenv_that_others_may_read_is_refused_when_it_holds_the_secret(tmp_path: Path) -> None:
    path = private(tmp_path / ".env", f"REGTUNE_WORKERS=2\n{NAME}={CANARY}\n", 0o644)
    assert "chmod 600 .env" in refusal()
    path.chmod(0o600)
    assert secret(NAME) == CANARY
    private(path, f"REGTUNE_WORKERS=2\n{TRACKING_USERNAME}=me\n", 0o644)
    assert secret(NAME) is None
    assert secret(TRACKING_USERNAME) == "me"


def test_mounted_secrets_may_have_any_mode(tmp_path: Path, monkeypatch: Patch) -> None:
    mounted = tmp_path / "run" / "secrets"
    (mounted / "..data").mkdir(parents=True)
    monkeypatch.setattr(credentials, "MOUNTED", mounted)
    private(mounted / "..data" / "password", mode=0o444)
    (mounted / "password").symlink_to(Path("..data") / "password")
    monkeypatch.setenv(f"{NAME}_FILE", str(mounted / "password"))
    assert secret(NAME) == CANARY

    private(tmp_path / "elsewhere", mode=0o444)
    (mounted / "link").symlink_to(tmp_path / "elsewhere")
    for way in (mounted / ".." / ".." / "elsewhere", mounted / "link"):
        monkeypatch.setenv(f"{NAME}_FILE", str(way))
        assert "others may read it" in refusal()


@pytest.mark.timeout(60)
def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path, monkeypatch: Patch) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    why = {"pipe": "not an ordinary file", "folder": "Is a directory", "absent": "No such file"}
    for name, reason in why.items():
        monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / name))
        assert f"{tmp_path / name} cannot be read ({reason}" in refusal()
    monkeypatch.delenv(f"{NAME}_FILE")
    (tmp_path / "pipe").rename(tmp_path / ".env")
    assert secret(NAME) is None


def test_a_child_gets_the_secrets_it_needs_and_no_other() -> None:
    given = dict.fromkeys(SECRETS, CANARY) | {f"{name}_FILE": "path" for name in SECRETS}
    assert without_secrets({**given, "PGPASSFILE": "path", "PATH": "/bin"}) == {"PATH": "/bin"}
    assert set(without_secrets(given, but=[NAME])) == {NAME, f"{NAME}_FILE"}


POSTGRES = "postgresql+psycopg://someone"
URLS = [
    *(
        f"{POSTGRES}:{password}@host/studies"
        for password in (CANARY, f"{CANARY}/with/slashes", f"a#b?c{CANARY}")
    ),
    *(f"{POSTGRES}@host/studies?{option}={CANARY}" for option in ("password", "pass%77ord", "sslpassword")),
    f"{POSTGRES}@host/studies?sslmode=require&PASSWORD={CANARY}",
    *(f"{scheme}someone:{CANARY}@host/studies" for scheme in ("mysql://", "http://", "")),
    *(f"http://someone:{CANARY}/x@host:5000", f"HTTPS://{CANARY}@host", f"https://host/?token={CANARY}"),
    f"postgresql+psycopg://:{CANARY}@host/studies",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_with_a_secret_is_refused_everywhere(url: str, tmp_path: Path, monkeypatch: Patch) -> None:
    variable = ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")[URLS.index(url) % 2]
    why = "a URL with a password or token ends up in logs and process lists"
    assert why in refused(lambda: Settings(**{variable: url}), ValidationError)
    assert why in refused(lambda: parse_url(url))
    private(tmp_path / ".env", f"{variable}='{url}'\n")
    assert f"{variable}: {why}" in refused(load_settings)
    (tmp_path / ".env").unlink()
    monkeypatch.setenv(variable, url)
    assert f"{variable}: {why}" in refused(load_settings)
    monkeypatch.delenv(variable)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / CHOICE).write_text(f'{{"studies": "sqlite:///x", "mlflow": "{url}"}}')
    assert why in refused(lambda: Settings().mlflow_uri)


def test_a_url_without_a_secret_is_taken() -> None:
    for url in (
        *("", "sqlite:///mlruns/studies.db", "sqlite:////home/a@b:c/studies.db", "http://127.0.0.1:5000"),
        f"{POSTGRES}@/studies?host=/run/postgresql&sslmode=require&passfile=/home/me/.pgpass",
    ):
        assert not in_url(url)
        assert Settings(OPTUNA_STORAGE=url).storage == url


def test_settings_errors_repeat_no_value(monkeypatch: Patch) -> None:
    monkeypatch.setenv("REGTUNE_WORKERS", CANARY)
    assert "REGTUNE_WORKERS" in refused(load_settings)
    refused(Settings, ValidationError)
