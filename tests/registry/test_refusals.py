from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from editspec.errors import InputError
from registry.adding import add
from registry.blobs import BlobStore
from registry.catalogue import Registry
from registry.checking import check
from registry.database import Database

K = "down.attn2.to_k.weight"


@pytest.mark.parametrize("table", ["excise_builds", "excise_files", "excise_events"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET build = 'x'", "DELETE FROM {}"])
def test_the_database_itself_refuses_to_rewrite_history(
    place: Any, make_build: Any, table: str, verb: str
) -> None:
    registry = Registry.open(place.folder, index=place.index, store=place.store, create=True)
    add(registry, make_build("model", {K: 1}))
    with pytest.raises((InputError, sqlalchemy.exc.IntegrityError), match="history only grows"):  # noqa: SIM117
        with registry.database.writing() as connection:
            connection.execute(text(verb.format(table)))
    assert check(registry, registry.entries()) == []


def test_a_history_changed_behind_the_triggers_is_found(make_build: Any, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "registry", create=True)
    build = add(registry, make_build("model", {K: 1})).build
    registry.promote(build, "withdrawn", reason="it leaks")
    database = sqlite3.connect(tmp_path / "registry" / "index.sqlite")
    database.execute("DROP TRIGGER excise_events_no_update")
    database.execute("UPDATE excise_events SET reason = 'nothing' WHERE number = 2")
    database.commit()
    (problem,) = check(registry, registry.entries())
    assert "step 2 (withdrawn) was changed" in problem.what

    database.execute("DROP TRIGGER excise_files_no_update")
    database.execute(
        "UPDATE excise_files SET path = 'other' WHERE path = 'README.md' OR path LIKE 'unet/%json'"
    )
    database.commit()
    assert "its list of files was changed" in check(registry, registry.entries())[1].what


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://ann:secret@host/x", "an index cannot be in mysql"),
        ("not a url", "is not a database URL"),
        ("sqlite://", "an index in memory"),
        ("sqlite:////no/such/place/index.sqlite", "no registry is here"),
        ("postgresql://ann:secret@127.0.0.1:9/x?connect_timeout=5", "the index fails"),
    ],
)
def test_an_index_that_cannot_be_used_is_refused_without_its_password(url: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


def test_a_registry_that_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no registry is here"):
        Registry.open(tmp_path / "registry")
    assert list(tmp_path.iterdir()) == []


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    Registry.open(tmp_path, create=True)
    database = sqlite3.connect(tmp_path / "index.sqlite")
    database.execute("UPDATE excise_about SET value = '99' WHERE name = 'version'")
    database.commit()
    with pytest.raises(InputError, match="version 99, this Excise reads version 1"):
        Registry.open(tmp_path, create=True)


@pytest.mark.parametrize(
    ("url", "says"),
    [("ftp://host/x", "no store is reached by ftp://"), ("http://host/x", "no store is reached by http://")],
)
def test_a_store_of_another_kind_is_refused(url: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        BlobStore(url)


def test_a_bucket_that_is_not_there_or_out_of_reach_is_bad_input(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="s3://no-such-bucket/x"):
        Registry.open(tmp_path, store="s3://no-such-bucket/x", create=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match="the store fails"):
        BlobStore("s3://bucket/x").sizes()


def test_a_store_without_permission_is_bad_input(tmp_path: Path) -> None:
    store = BlobStore(str(tmp_path / "file"))
    (tmp_path / "file").write_text("a file where the folder should be", "utf-8")
    with pytest.raises(InputError, match="the store fails"):
        store.put("0" * 64, b"")


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
def test_a_blob_whose_writing_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def refuse(handle: int) -> None:
        raise failure

    monkeypatch.setattr("registry.blobs.os.fsync", refuse)
    with pytest.raises((InputError, failure)):
        BlobStore(str(tmp_path)).put("0" * 64, b"anything")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
