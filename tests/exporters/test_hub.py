from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub
from small_artifact import contents, read

from compiler.artifact import CARD, MANIFEST, SIGNATURE, Artifact
from editspec.errors import GateFailed, InputError
from exporters.hub import BUILD_TAG, Published, Wish, push
from exporters.manifest import check_manifest

NAME = "maker/small"
UNET = "unet/diffusion_pytorch_model.safetensors"
Make = Callable[..., Path]


def publish(folder: Path, **wish: Any) -> Published:
    return push(read(folder), NAME, Wish(**wish), pauses=(0.0, 0.0))


def writes(hub: LocalHub) -> list[str]:
    return [request for request in hub.requests if request.startswith(("POST", "PUT"))]


def test_an_artifact_appears_whole_in_one_commit_private_and_tagged(hub: LocalHub, artifact: Make) -> None:
    folder = artifact()
    done = publish(folder, tags=("v1.0.0",))
    repository = hub.state.repositories[NAME]
    assert hub.files(NAME) == contents(folder)
    assert repository.private
    assert [revision.title for revision in repository.revisions.values()][1:] == [f"Build {done.digest[:12]}"]
    assert repository.tags == {BUILD_TAG + done.digest: done.revision, "v1.0.0": done.revision}
    assert done.url == f"{hub.endpoint}/{NAME}/tree/{done.revision}"
    assert any(request.endswith("/complete") for request in hub.requests)  # the U-Net went in parts


def test_what_the_stock_client_downloads_by_tag_is_what_was_built(
    hub: LocalHub, artifact: Make, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi, RepoFile

    done = publish(artifact())
    api = HfApi(endpoint=hub.endpoint)
    tag = BUILD_TAG + done.digest
    folder = Path(api.snapshot_download(NAME, revision=tag, local_dir=tmp_path / "got"))
    assert check_manifest(folder) == ()
    assert not api.verify_repo_checksums(NAME, revision=done.revision, local_dir=folder).mismatches
    (info,) = api.get_paths_info(NAME, [UNET], revision=tag)
    assert isinstance(info, RepoFile)
    assert info.lfs is not None
    assert info.lfs.sha256 == Artifact(folder).sha256(UNET)


def test_pushing_again_sends_and_commits_nothing(hub: LocalHub, artifact: Make) -> None:
    folder = artifact()
    first = publish(folder)
    hub.requests.clear()
    again = publish(folder)
    assert (again.revision, again.tags) == (first.revision, first.tags)
    assert not again.changes
    assert writes(hub) == []


def test_a_new_build_takes_the_place_of_the_old_one_and_both_keep_their_tags(
    hub: LocalHub, artifact: Make
) -> None:
    old, new = artifact(1, **{"unet/old.json": b"{}"}), artifact(2)
    before, after = publish(old), publish(new)
    assert hub.files(NAME, BUILD_TAG + before.digest) == contents(old)
    assert hub.files(NAME, BUILD_TAG + after.digest) == hub.files(NAME) == contents(new)
    assert after.changes.remove == ("unet/old.json",)
    assert after.parent == before.revision


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(hub: LocalHub, artifact: Make) -> None:
    folder = artifact()
    there_is_none = publish(folder, dry_run=True)
    assert (there_is_none.creates, there_is_none.revision) == ("private", None)
    assert set(there_is_none.changes.add) == set(contents(folder))
    publish(folder)
    hub.requests.clear()
    changed = publish(artifact(2), dry_run=True)
    assert UNET in changed.changes.change
    assert "vae/diffusion_pytorch_model.safetensors" not in changed.changes.change
    assert writes(hub) == []


def test_a_tag_of_another_release_is_refused_before_anything_is_sent(hub: LocalHub, artifact: Make) -> None:
    publish(artifact(1), tags=("v1",))
    before = hub.state.repositories[NAME].tags.copy()
    hub.requests.clear()
    with pytest.raises(InputError, match=r"'v1' names another release .* never moved"):
        publish(artifact(2), tags=("v1",))
    assert writes(hub) == []
    assert hub.state.repositories[NAME].tags == before


def test_a_tag_that_someone_sets_meanwhile_is_left_to_them(
    hub: LocalHub, artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(artifact(1))
    repository = hub.state.repositories[NAME]
    theirs = repository.branches["main"]
    steal = hub.state.apply

    def apply(*arguments: Any) -> Any:
        repository.tags["v2"] = theirs
        return steal(*arguments)

    monkeypatch.setattr(hub.state, "apply", apply)
    with pytest.raises(InputError, match=r"the tag 'v2' was set on .* by someone else"):
        publish(artifact(2), tags=("v2",))
    assert repository.tags["v2"] == theirs


def test_files_of_strangers_are_removed_only_on_demand(hub: LocalHub, artifact: Make) -> None:
    hub.state.create(NAME, private=True)
    hub.state.someone_commits(NAME, "their-work.txt")
    folder = artifact()
    with pytest.raises(InputError, match=r"no build of Excise put there: their-work\.txt"):
        publish(folder)
    assert writes(hub) == []
    assert publish(folder, replace=True).changes.remove == ("their-work.txt",)
    assert hub.files(NAME) == contents(folder)


def test_a_pull_request_leaves_the_branch_alone_and_is_opened_once(hub: LocalHub, artifact: Make) -> None:
    publish(artifact(1))
    repository, folder = hub.state.repositories[NAME], artifact(2)
    head, tags = repository.branches["main"], repository.tags.copy()
    hub.fail("/commit/", "lost")
    first = publish(folder, pull_request=True)
    again = publish(folder, pull_request=True)
    assert first.pull_request == again.pull_request == f"{hub.endpoint}/{NAME}/discussions/1"
    assert (first.tags, list(repository.pulls)) == ((), [1])
    assert hub.files(NAME, "refs/pr/1") == contents(folder)
    assert (repository.branches["main"], repository.tags) == (head, tags)
    repository.branches["main"] = repository.pulls[1]  # merged
    assert publish(folder).tags == (BUILD_TAG + first.digest,)
    assert repository.tags[BUILD_TAG + first.digest] == repository.pulls[1]


def test_an_ignore_file_in_the_repository_hides_no_file_of_the_release(hub: LocalHub, artifact: Make) -> None:
    hub.state.create(NAME, private=True)
    hub.state.someone_commits(NAME, ".gitignore", b"diffusion_pytorch_model.safetensors\n")
    folder = artifact()
    publish(folder, replace=True)
    assert hub.files(NAME) == contents(folder)


def test_a_server_that_keeps_something_else_gets_no_tag(
    hub: LocalHub, artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = hub.state.apply

    def apply(*arguments: Any) -> Any:
        tree = honest(*arguments)
        return {**tree, CARD: hub.state.keep(b"something else")}

    monkeypatch.setattr(hub.state, "apply", apply)
    with pytest.raises(GateFailed, match=r"README.md differs; no tag was set"):
        publish(artifact())
    assert hub.state.repositories[NAME].tags == {}


@pytest.mark.parametrize("name", [CARD, UNET])
def test_a_file_that_changes_after_it_was_hashed_is_not_published(
    hub: LocalHub, artifact: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.release.READ_WHOLE", 100_000)  # the U-Net is streamed
    folder = artifact()
    release = read(folder)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match="changed while it was published"):
        push(release, NAME, pauses=())
    assert hub.files(NAME) == {}


@pytest.mark.parametrize(
    ("secret", "what"),
    [
        (b'{"_name_or_path": "/home/alice/models/base"}', "a path of the machine"),
        (b'{"from": "C:\\\\Users\\\\alice\\\\base"}', "a path of the machine"),
        (b"hf_" + b"a1B2" * 9, "a Hugging Face token"),
        (b"-----BEGIN EC PRIVATE KEY-----", "a private key"),
    ],
)
def test_a_secret_or_a_local_path_stops_the_release_unsent_and_unrepeated(
    hub: LocalHub, artifact: Make, secret: bytes, what: str
) -> None:
    with pytest.raises(InputError) as refused:
        publish(artifact(1, **{"unet/config.json": secret}))
    assert f"unet/config.json holds {what}" in str(refused.value)
    assert secret.decode("ascii") not in str(refused.value)
    assert hub.requests == []


def test_the_visibility_asked_for_is_what_is_there_or_nothing_is_sent(hub: LocalHub, artifact: Make) -> None:
    assert publish(artifact(), visibility="public").creates == "public"
    assert not hub.state.repositories[NAME].private
    hub.requests.clear()
    with pytest.raises(InputError, match="is public, not private"):
        publish(artifact(2), visibility="private")
    assert writes(hub) == []


@pytest.mark.parametrize(
    ("name", "wish", "said"),
    [
        ("small", {}, "write it as owner/name"),
        ("maker/small/", {}, "write it as owner/name"),
        (NAME, {"tags": ("no spaces",)}, "is no name of a tag"),
        (NAME, {"branch": "nowhere"}, "has no branch 'nowhere'"),
        (NAME, {"tags": ("main",)}, "has a branch called 'main'"),
    ],
)
def test_names_that_cannot_be_are_refused(
    hub: LocalHub, artifact: Make, name: str, wish: dict[str, Any], said: str
) -> None:
    hub.state.create(NAME, private=True)
    with pytest.raises(InputError, match=said):
        push(read(artifact()), name, Wish(**wish), pauses=())


def test_a_hub_that_would_see_the_token_unencrypted_is_refused(
    hub: LocalHub, artifact: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://user:word@hub.example.org")
    with pytest.raises(InputError, match="unencrypted") as refused:
        publish(artifact())
    assert "word" not in str(refused.value)


def test_a_build_that_is_out_already_is_not_published_again_under_another_signature(
    hub: LocalHub, artifact: Make
) -> None:
    folder = artifact()
    (folder / SIGNATURE).write_bytes(b"{}")
    assert publish(folder).digest == Artifact(folder).sha256(MANIFEST)
    (folder / SIGNATURE).write_bytes(b"{ }")
    hub.requests.clear()
    with pytest.raises(InputError, match="this very build already, signed otherwise"):
        publish(folder)
    assert writes(hub) == []
