"""Where passwords may come from, where they are refused, and that no refusal repeats them."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

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


def refusal(name: str = NAME) -> str:
    """What is said when `name` is refused, seen that the whole traceback does not repeat the secret."""
    with pytest.raises(SettingsError) as caught:
        secret(name)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


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
        f"export {NAME} = {CANARY}  # mine": CANARY,
        f'{NAME}="two words # and a $HOME"': "two words # and a $HOME",
        f"{NAME}='it is \\'so\\''": "it is 'so'",
        f"\ufeff{NAME}=größer": "größer",
        f"{NAME}=": None,
        NAME: None,
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
    behind = ("\nanother line\n", "\0", "\x1b[2J", "\u2028", CANARY * 10_000)
    contents = (b"\n", *(f"{CANARY}{end}".encode() for end in behind), f"{CANARY}\xff".encode("latin-1"))
    for content in contents:
        private(tmp_path / "secret", content)
        assert refusal() == f"{NAME}_FILE: {tmp_path}/secret: expected one line of text, the secret"
    monkeypatch.setenv(NAME, f"{CANARY}\r\nX-Header: 1")
    assert refusal() == f"{NAME}: expected one line of text, the secret"


@pytest.mark.parametrize("mode", [0o640, 0o610, 0o601])
def test_a_file_that_others_may_read_is_refused(mode: int, tmp_path: Path, monkeypatch: Patch) -> None:
    path = private(tmp_path / "a secret", mode=mode)
    monkeypatch.setenv(f"{NAME}_FILE", str(path))
    said = refusal()
    assert f"(mode {mode:04o})" in said
    assert said.endswith(f"try: chmod 600 '{path}'")
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


def test_the_mode_is_that_of_what_a_link_leads_to(tmp_path: Path, monkeypatch: Patch) -> None:
    target = private(tmp_path / "target", mode=0o644)
    (tmp_path / "link").symlink_to(target)
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "link"))
    assert "mode 0644" in refusal()
    target.chmod(0o600)
    assert secret(NAME) == CANARY


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
    why = {"pipe": "not an ordinary file", "folder": "not an ordinary file", "absent": "No such file"}
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


URLS = [
    f"postgresql+psycopg://someone:{CANARY}@host/studies",
    f"postgresql+psycopg://someone:{CANARY}/with/slashes@host/studies",
    f"postgresql+psycopg://someone:a#b?c{CANARY}@host/studies",
    f"postgresql+psycopg://:{CANARY}@host/studies",
    f"postgresql+psycopg://someone@host/studies?password={CANARY}",
    f"postgresql+psycopg://someone@host/studies?sslmode=require&PASSWORD={CANARY}",
    f"postgresql+psycopg://someone@host/studies?pass%77ord={CANARY}",
    f"postgresql+psycopg://someone@host/studies?sslpassword={CANARY}",
    f"mysql://someone:{CANARY}@host/studies",
    f"someone:{CANARY}@host/studies",
    f"http://someone:{CANARY}@host:5000",
    f"http://someone:{CANARY}/x@host:5000",
    f"HTTPS://{CANARY}@host",
    f"https://host/?token={CANARY}",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_with_a_secret_is_refused_everywhere(url: str, tmp_path: Path, monkeypatch: Patch) -> None:
    def refused(call: object, kind: type[Exception] = SettingsError) -> str:
        with pytest.raises(kind) as caught:
            call()  # type: ignore[operator]
        whole = "".join(traceback.format_exception(caught.value))
        assert CANARY not in whole + repr(caught.value)
        return whole

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
        *("", "sqlite:///mlruns/studies.db", "sqlite:////home/a@b:c/studies.db"),
        "postgresql+psycopg://someone@host:5432/studies",
        "postgresql+psycopg://someone@/studies?host=/run/postgresql&sslmode=require&passfile=/home/me/.pgpass",
        *("http://127.0.0.1:5000", "https://tracking.example.org/mlflow"),
    ):
        assert not in_url(url)
        assert Settings(OPTUNA_STORAGE=url).storage == url


def test_settings_errors_repeat_no_value(monkeypatch: Patch) -> None:
    monkeypatch.setenv("REGTUNE_WORKERS", CANARY)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValidationError) as raw:
        Settings()
    assert CANARY not in "".join(traceback.format_exception(raw.value)) + repr(raw.value)


def test_settings_hold_no_secret(tmp_path: Path, monkeypatch: Patch) -> None:
    private(tmp_path / ".env", "".join(f"{name}={CANARY}\n" for name in SECRETS[:3]))
    for name in SECRETS[3:]:
        monkeypatch.setenv(name, CANARY)
    found = load_settings()
    assert CANARY not in f"{found!r} {found} {found.model_dump()} {vars(found)}"
