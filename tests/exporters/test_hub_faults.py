from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_storage import SIGNATURE
from local_hub import TOKEN, LocalHub
from small_artifact import contents, read

from compiler.artifact import Artifact
from editspec.errors import InputError
from exporters.hub import BUILD_TAG, Published, push

NAME = "maker/small"
Make = Callable[..., Path]


def publish(folder: Path) -> Published:
    return push(read(folder), NAME, pauses=(0.0, 0.0))


STEPS = {
    "look": r"GET /api/models/maker/small/revision/main",
    "refs": r"/refs",
    "tree": r"/tree/",
    "create": r"/repos/create",
    "card": r"/validate-yaml",
    "preupload": r"/preupload/",
    "batch": r"/objects/batch",
    "part": r"PUT /storage/\w+/2",
    "complete": r"/complete",
    "upload": r"PUT /storage/\w+$",
    "check": r"/lfs/verify",
    "commit": r"/commit/",
    "tag": r"/tag/",
}


PASSING = [(step, kind) for step in STEPS for kind in ("unavailable", "lost")]
PASSING += [
    (step, kind) for step in ("create", "upload", "commit", "tag") for kind in ("reset", "failed", "cut")
]


@pytest.mark.parametrize(("step", "kind"), PASSING)
def test_a_passing_fault_at_any_step_is_outlived(hub: LocalHub, artifact: Make, step: str, kind: str) -> None:
    folder = artifact()
    hub.fail(STEPS[step], kind)
    done = publish(folder)
    assert not any(fault.times for fault in hub.faults)  # it did happen
    repository = hub.state.repositories[NAME]
    assert hub.files(NAME) == contents(folder)
    assert len(repository.revisions) == 2
    assert repository.tags == {BUILD_TAG + done.digest: done.revision}


@pytest.mark.parametrize("step", ["create", "preupload", "upload", "commit", "tag"])
def test_an_outage_ends_the_push_and_the_next_one_goes_on(hub: LocalHub, artifact: Make, step: str) -> None:
    folder = artifact()
    hub.fail(STEPS[step], "unavailable", times=10**6)
    with pytest.raises(InputError, match="does not answer as it should") as refused:
        publish(folder)
    assert "run the same command again" in refused.value.remedy
    if NAME in hub.state.repositories:
        assert hub.files(NAME) in ({}, contents(folder))
        assert hub.state.repositories[NAME].tags == {}
    hub.heal()
    arrived = set(hub.state.objects)
    hub.requests.clear()
    publish(folder)
    assert hub.files(NAME) == contents(folder)
    assert len(hub.state.repositories[NAME].revisions) == 2
    sent = {request.split("/")[2] for request in hub.requests if request.startswith("PUT /storage/")}
    assert not sent & arrived  # what arrived the first time is not sent again


def test_another_commit_meanwhile_is_not_overwritten(hub: LocalHub, artifact: Make) -> None:
    folder = artifact()
    hub.fail(STEPS["commit"], "conflict")
    with pytest.raises(InputError, match=r"'main' moved from .* meanwhile"):
        publish(folder)
    assert set(hub.files(NAME)) == {"README.md"}
    assert hub.state.repositories[NAME].tags == {}
    publish(folder)  # their README.md is one of ours: told of it, the maker pushes again
    assert hub.files(NAME) == contents(folder)


def test_a_lost_answer_and_another_commit_on_top_is_told_as_it_is(hub: LocalHub, artifact: Make) -> None:
    folder = artifact()
    hub.fail(STEPS["commit"], "lost")
    hub.fail(STEPS["look"], "conflict", after=10)  # while the lost commit is looked for
    with pytest.raises(InputError, match="'main' moved"):
        publish(folder)
    assert hub.state.repositories[NAME].tags == {}


@pytest.mark.parametrize("step", ["preupload", "batch", "commit", "tag"])
def test_a_token_that_expires_is_told_and_never_shown(hub: LocalHub, artifact: Make, step: str) -> None:
    folder = artifact()
    hub.fail(STEPS[step], "expired")
    with pytest.raises(InputError, match="the token is missing, wrong or expired") as refused:
        publish(folder)
    assert TOKEN not in str(refused.value)
    assert "hf auth login" in refused.value.remedy
    assert hub.files(NAME) == (contents(folder) if step == "tag" else {})
    assert hub.state.repositories[NAME].tags == {}
    hub.heal()
    publish(folder)
    assert hub.files(NAME) == contents(folder)
    assert len(hub.state.repositories[NAME].revisions) == 2


def test_a_full_storage_is_told_and_nothing_is_committed(hub: LocalHub, artifact: Make) -> None:
    folder = artifact()
    hub.fail(STEPS["preupload"], "full")
    with pytest.raises(InputError, match=r"no room there .*storage limit reached"):
        publish(folder)
    assert hub.files(NAME) == {}
    hub.heal()
    publish(folder)
    assert hub.files(NAME) == contents(folder)


def test_without_a_token_the_hub_says_so(
    hub: LocalHub, artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(InputError, match="the token is missing"):
        publish(artifact())


def test_neither_token_nor_signed_address_reaches_a_log_or_the_screen(
    hub: LocalHub, artifact: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fail(STEPS["upload"], "unavailable", times=10**6)
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError) as refused:
        publish(artifact())
    assert "503" in caplog.text  # the client did tell of its tries
    shown = caplog.text + "".join(capfd.readouterr()) + str(refused.value)
    assert TOKEN not in shown
    assert SIGNATURE not in shown


def test_xet_carries_the_large_files_too(
    hub: LocalHub, artifact: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.state.xet = str(tmp_path / "chunks")
    folder = artifact()
    done = publish(folder)
    tree = hub.state.repositories[NAME].revision(BUILD_TAG + done.digest).tree
    digests = {name: blob.large for name, blob in tree.items() if blob.large}
    assert len(digests) == 5
    assert all(digest == Artifact(folder).sha256(name) for name, digest in digests.items())
    assert not any("/storage/" in request for request in hub.requests)
    assert sum(path.stat().st_size for path in (tmp_path / "chunks").rglob("*") if path.is_file()) > 200_000


def test_a_server_without_xet_is_told_in_words(
    hub: LocalHub, artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with pytest.raises(InputError, match="uploading"):
        publish(artifact())
    assert hub.files(NAME) == {}
