"""Pulled versions: a folder that holds one version, whole and checked, whatever happens meanwhile."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from parts import file_system
from terminals import run_here

from regtune.training.runtime import configure

configure()

from test_contents import POISON  # noqa: E402
from versions import TECHNIQUES, register_version, replace_file  # noqa: E402

import regtune  # noqa: E402
from regtune.config.trial import EarlyStoppingConfig, TrialConfig  # noqa: E402
from regtune.errors import InputError, RegistryError, TrackingError, VersionDamaged  # noqa: E402
from regtune.registry import journal  # noqa: E402
from regtune.registry import pull as pulling  # noqa: E402
from regtune.registry.cache import Cache, Found  # noqa: E402
from regtune.registry.contents import check_folder  # noqa: E402
from regtune.registry.pull import LINKS, Pulled, ask, difference, pull  # noqa: E402
from regtune.registry.store import Version, open_registry  # noqa: E402
from regtune.registry.values import value_of, words  # noqa: E402
from regtune.registry.version import MODEL  # noqa: E402
from regtune.settings import Settings  # noqa: E402
from regtune.storage import lock  # noqa: E402
from regtune.study.best import load_best  # noqa: E402
from regtune.tracking import names  # noqa: E402

NAME, DIR = "digits", Path("digits")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: bytes) -> Path:
    """A home with two versions of one model, the second one its champion."""
    settings = Settings(REGTUNE_HOME=tmp_path_factory.mktemp("made"))
    (settings.home / "mlflow.db").write_bytes(empty_mlflow)
    first = register_version(settings, NAME)
    client = open_registry(settings).client
    register_version(settings, NAME, seed=1, experiment=client.get_run(first.run_id).info.experiment_id)
    return settings.home


@pytest.fixture
def settings(made: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("REGTUNE_HOME", str(made))
    return Settings()


@pytest.fixture
def changeable(made: Path, tmp_path: Path) -> Settings:
    """A copy of that home."""
    shutil.copytree(made, tmp_path / "mlruns")
    return Settings()


def pulled(settings: Settings, target: str = NAME) -> Pulled:
    return pull(settings, target, DIR, pytest.fail)


def champion(settings: Settings, number: int) -> Version:
    registry = open_registry(settings)
    journal.move(registry, NAME, names.CHAMPION, number, journal.settle(registry, NAME), why="promoted")
    return registry.find(NAME)


def check(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code, _, said = run_here(capsys, "pull", NAME, "--check")
    return code, said


def test_a_folder_is_one_version_at_every_moment_and_readers_keep_theirs(settings: Settings) -> None:
    first = pulled(settings, f"{NAME}@previous")
    reader = (DIR / "version").resolve()
    before = (reader / "regtune/config.yaml").read_bytes()
    second = pulled(settings)
    assert (first.number, first.changed, second.number, second.changed) == (1, True, 2, True)
    record = check_folder(DIR / "version", second.digest)
    assert load_best(DIR / "config.yaml").config == record.config
    assert sorted(path.name for path in DIR.iterdir()) == [".versions", *sorted([*LINKS, "version"])]
    assert (reader / "regtune/config.yaml").read_bytes() == before != (DIR / "config.yaml").read_bytes()
    assert not pulled(settings).changed
    assert not reader.exists()
    assert sorted(path.name for path in (DIR / ".versions").iterdir()) == sorted(
        ["locks", (DIR / "version").resolve().name]
    )


def test_a_pull_that_ends_before_any_of_its_renames_leaves_one_version_whole(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_of_links, rename = [*LINKS, "version"], Path.replace
    first = pulled(settings, f"{NAME}@previous")
    for number in range(len(names_of_links)):
        done: list[str] = []

        def die(self: Path, to: Path, number: int = number, done: list[str] = done) -> Path:
            if len(done) == number:
                raise KeyboardInterrupt
            done.append(to.name)
            return rename(self, to)

        monkeypatch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            pulled(settings)
        monkeypatch.setattr(Path, "replace", rename)
        assert done == names_of_links[:number]
        assert not difference(DIR, ask(settings, f"{NAME}@previous"))
    assert not pulled(settings, f"{NAME}@previous").changed
    assert {path.name for path in (DIR / ".versions").iterdir()} == {
        "locks",
        (DIR / "version").readlink().name,
    }
    assert pulled(settings).digest == ask(settings, NAME).digest != first.digest


def test_whoever_has_waited_for_another_pull_asks_again_which_version_it_is(changeable: Settings) -> None:
    pulled(changeable, f"{NAME}@previous")
    with ThreadPoolExecutor(1) as other:
        with lock(DIR / ".versions", "pull", 1.0):
            waiting = other.submit(pulled, changeable)
            time.sleep(1.0)
            champion(changeable, 1)
        assert waiting.result().number == 1
    assert not difference(DIR, ask(changeable, NAME))


def test_a_pull_that_fails_leaves_what_another_has_put_there_meanwhile(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TrackingError("away")

    with monkeypatch.context() as patch:
        patch.setattr(pulling, "fetch", fail)
        with pytest.raises(TrackingError):
            pulled(settings)
        with pytest.raises(TrackingError):
            pull(settings, NAME, Path("deep/deeper/digits"), pytest.fail)
    assert not list(Path().glob("d*"))
    first = pulled(settings, f"{NAME}@previous")
    monkeypatch.setattr(pulling, "fetch", fail)
    monkeypatch.setattr(pulling, "_require_own", lambda folder: True)  # as it was when this pull looked
    with pytest.raises(TrackingError):
        pulled(settings)
    assert check_folder(DIR / "version", first.digest)


def test_the_cache_keeps_what_mlflow_said_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = Cache(Settings(MLFLOW_TRACKING_URI="http://127.0.0.1:1"))
    times = [(datetime.now(UTC) + timedelta(seconds=shift)).isoformat() for shift in (-2, -1, 3600)]
    founds = [
        Found(name=NAME, alias="champion", number=number, digest=f"{number}" * 64, at=at)
        for number, at in enumerate(times, 1)
    ]
    files = tmp_path / "files"
    files.mkdir()
    for number in (2, 1):  # a pull of version 1 that took longer
        cache.keep(founds[number - 1], files)
        assert cache.last(NAME, "champion") == founds[1]
    assert [cache.take(found.digest, tmp_path / f"{found.number}") for found in founds] == [
        False,
        True,
        False,
    ]
    for number in (3, 1):  # the clock was set back after version 3
        cache.keep(founds[number - 1], files)
        assert cache.last(NAME, "champion") == founds[number - 1]


def test_check_tells_the_current_version_from_every_other_folder(
    changeable: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(capsys) == (
        10,
        "digits: not version 2 of digits (@champion): there is no pulled version\n",
    )
    assert run_here(capsys, "pull", NAME)[0] == 0
    assert check(capsys) == (0, "digits: version 2 of digits (@champion)\n")
    champion(changeable, 1)
    assert check(capsys)[0] == 10
    assert run_here(capsys, "pull", NAME) == (
        0,
        "",
        "digits has version 1 of digits (@champion): config.yaml, model.keras, card.md\n",
    )
    shutil.copytree(DIR, "copied")  # as COPY in a Dockerfile, or cp -r
    shutil.copytree(DIR / "version", "bare")
    assert run_here(capsys, "pull", NAME, "--check", "-o", "copied")[0] == 0
    assert run_here(capsys, "pull", NAME, "--check", "-o", "bare")[0] == 10
    assert run_here(capsys, "pull", f"{NAME}@v2", "-o", "copied")[0] == 0
    assert run_here(capsys, "pull", f"{NAME}@v2", "--check", "-o", "copied")[0] == 0
    assert Path("copied/version").is_symlink()
    model = DIR / "version" / MODEL
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, said = check(capsys)
    assert (code, "(@champion): data/model.keras: was changed (SHA-256 " in said) == (10, True)
    assert run_here(capsys, "pull", NAME)[0] == check(capsys)[0] == 0
    (DIR / "config.yaml").unlink()
    (DIR / "config.yaml").write_text("seed: 1\n")
    assert check(capsys)[1].endswith("config.yaml: was changed\n")
    assert run_here(capsys, "pull", NAME)[0] == check(capsys)[0] == 0


def test_a_folder_with_something_else_in_it_stays_as_it_is(settings: Settings) -> None:
    DIR.mkdir()
    assert pulled(settings).changed  # an empty one is as good as none
    shutil.rmtree(DIR)
    DIR.mkdir()
    (DIR / "thesis.tex").touch()
    Path("file").touch()
    for folder in (DIR, Path("file"), DIR / "thesis.tex"):
        with pytest.raises(InputError, match=f"^{folder}: something else than a pulled version is there; "):
            pull(settings, NAME, folder, pytest.fail)
    assert [path.name for path in DIR.iterdir()] == ["thesis.tex"]
    (DIR / ".versions").mkdir()  # of another program
    (DIR / ".versions" / "1").touch()
    with pytest.raises(InputError, match=f"^{DIR}: something else than a pulled version is there; "):
        pull(settings, NAME, DIR, pytest.fail)
    assert (DIR / ".versions" / "1").exists()


def test_a_flipped_bit_is_named_and_the_folder_stays_as_it_is(changeable: Settings) -> None:
    pulled(changeable, f"{NAME}@previous")
    before = (DIR / "version").readlink()
    version = open_registry(changeable).find(NAME)
    replace_file(changeable, version, MODEL, lambda held: held[:-1] + bytes([held[-1] ^ 1]), signed=False)
    with pytest.raises(VersionDamaged, match=f"^digits version 2: {MODEL}: was changed "):
        pulled(changeable)
    assert (DIR / "version").readlink() == before
    assert {path.name for path in (DIR / ".versions").iterdir()} == {"locks", before.name}
    with pytest.raises(VersionDamaged):
        pull(changeable, NAME, Path("new"), pytest.fail)
    assert not Path("new").exists()


def test_poison_is_refused_by_name_at_every_door_and_nothing_of_it_is_loaded(
    changeable: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    version, healthy = open_registry(changeable).find(NAME), b""
    for change, named in POISON.values():

        def poisoned(held: bytes, change: Callable[[bytes], bytes] = change) -> bytes:
            nonlocal healthy
            healthy = healthy or held
            return change(healthy)

        replace_file(changeable, version, MODEL, poisoned)
        for door in (["pull", NAME], ["pull", NAME, "--config"], ["model", "verify", NAME]):
            code, out, said = run_here(capsys, *door)
            assert (code, out) == (1, "")
            assert said.startswith(f"error: digits version 2: {MODEL}: ")
            assert named in said
        with pytest.raises(VersionDamaged, match=named):
            regtune.load_champion(NAME)
    assert not DIR.exists()


def test_files_that_are_gone_are_one_line_and_the_folder_stays_as_it_is(changeable: Settings) -> None:
    before = pulled(changeable, f"{NAME}@previous")
    shutil.rmtree(changeable.artifacts / "runs" / "models")
    with pytest.raises(
        TrackingError, match=r"^digits version 2: its files cannot be downloaded \(No such artifact"
    ):
        pulled(changeable)
    assert check_folder(DIR / "version", before.digest)


def test_a_version_that_regtune_did_not_register_is_one_line(changeable: Settings) -> None:
    client = open_registry(changeable).client
    client.set_model_version_tag(NAME, "2", names.MANIFEST_DIGEST, "none")
    with pytest.raises(
        VersionDamaged, match=r"digits: the tag regtune.manifest_sha256 of version 2 was changed: none"
    ):
        pulled(changeable)
    client.delete_model_version_tag(NAME, "2", names.MANIFEST_DIGEST)
    with pytest.raises(
        RegistryError, match=r"digits: version 2 has no tag regtune.manifest_sha256: regtune did not"
    ):
        pulled(changeable)


def test_the_configuration_alone_goes_to_a_file_a_pipe_and_a_shell(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_here(capsys, "pull", NAME, "--config")
    assert (code, TrialConfig.from_yaml(out).seed) == (0, 1)
    assert json.loads(run_here(capsys, "pull", NAME, "--config", "--json")[1])["seed"] == 1
    for _ in range(2):  # what is the same is not asked about
        assert run_here(capsys, "pull", NAME, "--config", "-o", "best.yaml") == (0, "", "Wrote best.yaml.\n")
    assert Path("best.yaml").read_text() == out
    code, _, said = run_here(capsys, "pull", f"{NAME}@previous", "--config", "-o", "best.yaml")
    assert (code, "Replace best.yaml, which holds something else?" in said) == (2, True)
    assert run_here(capsys, "pull", f"{NAME}@previous", "--config", "-o", "best.yaml", "--yes")[0] == 0
    assert run_here(capsys, "pull", NAME, "--get", "dropout") == (0, "0.2 0.1\n", "")
    assert run_here(capsys, "pull", NAME, "--get", "dropout", "--json")[1].split() == [
        "[",
        "0.2,",
        "0.1",
        "]",
    ]
    assert run_here(capsys, "pull", NAME, "--get", "dropuot")[::2] == (
        2,
        'error: --get dropuot: unknown key; did you mean "dropout"?\n',
    )
    Path("folder").mkdir()
    found = run_here(capsys, "pull", NAME, "--config", "-o", "folder", "--yes")
    assert found == (2, "", "error: --output folder: expected a file, found a folder\n")
    assert Path("folder").is_dir()
    for wrong in (["--check", "--config"], ["--get", "l1", "-o", "x"], ["--config", "--json", "-o", "x"]):
        assert run_here(capsys, "pull", NAME, *wrong)[0] == 2
    assert not DIR.exists()


def test_every_key_has_one_value_that_a_shell_takes() -> None:
    config = TrialConfig(regularization=TECHNIQUES, early_stopping=EarlyStoppingConfig(patience=2), seed=7)
    asked = {
        "hidden": "128 64",
        "dropout": "0.2 0.1",
        "regularization.l2": "0.0001",
        "batchnorm": "none after_activation",
        "fused": "true",
        "early_stopping.patience": "2",
        "seed": "7",
        "digest": "",
    }
    assert {key: words(value_of(config, key)) for key in asked} == asked
    off = config.model_copy(update={"early_stopping": None})
    assert words(value_of(off, "patience")) == ""
    keys = [
        f"{group}.{key}"
        for group, values in config.to_dict().items()
        if isinstance(values, dict)
        for key in values
    ]
    assert len({key.rpartition(".")[2] for key in keys} | {"seed"}) == len(keys) + 1  # none is ambiguous
    with pytest.raises(InputError, match=r"--get model: unknown key; expected one of model.hidden, "):
        value_of(config, "model")


def test_a_full_disk_and_a_folder_that_may_not_be_written_are_one_line(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("small").mkdir()
    with file_system(Path("small"), "size=64k"):
        code, _, said = run_here(capsys, "pull", NAME, "-o", "small/digits")
        assert (code, said.count("\n")) == (1, 1)
        assert said.startswith("error: small/digits/.versions: the disk is full; ")
        assert not Path("small/digits").exists()
    with file_system(Path("small"), "ro"):
        code, _, said = run_here(capsys, "pull", NAME, "-o", "small/digits")
        assert (code, said) == (1, "error: small/digits: cannot be written (Read-only file system)\n")


def test_what_is_loaded_in_python_predicts_what_was_registered(settings: Settings) -> None:
    import numpy as np
    from versions import DATA

    from regtune.data.datasets import load_arrays
    from regtune.registry.contents import read_predictions

    champion = pulled(settings)
    record = check_folder(DIR / "version", champion.digest)
    images = load_arrays(DATA.name).x_test[:100].reshape(-1, 28, 28)
    probabilities = regtune.load_champion(NAME)(images).numpy()
    assert np.allclose(probabilities, read_predictions(DIR / "version", record)[:100], atol=1e-6)
    with pytest.raises(regtune.errors.ModelNotFound, match="no alias @staging"):
        regtune.load_champion(f"{NAME}@staging", settings)
