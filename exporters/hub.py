"""Publishing an artifact on the Hub: one commit that holds it whole, checked on the server, then tagged.

1. look            head, tags and tree of the repository; what has been published already is not sent again
2. refuse          a tag that names other content; files of strangers; secrets and local paths in the artifact
3. upload          large files, by digest: what arrived stays there, so a second try goes on where one stopped
4. commit          everything at once, on the very head that was looked at; anyone else's commit refuses ours
5. verify          the server's digest of every file, at the new commit
6. tag             the build's digest and what was asked for; only what was verified gets a tag

A release is what a tag names. Until step 6 there is none, and until step 4 nobody sees a file of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from compiler.artifact import SPEC
from compiler.progress import Progress, Silent
from editspec.errors import GateFailed, InputError, listed
from exporters.hub_client import PAUSES, Commit, Repository, State, secrets
from exporters.leaks import leaks
from exporters.release import Changes, Release, RemoteFile, changes

BUILD_TAG = "build-"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
TAG = re.compile(r"[\w-][\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class Wish:
    """How to publish. `visibility` None: a new repository becomes private, one that is there stays."""

    branch: str = "main"
    visibility: Literal["private", "public"] | None = None
    pull_request: bool = False
    tags: tuple[str, ...] = ()
    replace: bool = False  # remove files that are in the repository and not in the artifact
    message: str = ""
    dry_run: bool = False


@dataclass(frozen=True)
class Published:
    """What was done, or with `dry_run` what would be. `revision` None: nothing is there yet."""

    repository: str
    url: str
    digest: str
    parent: str | None
    revision: str | None
    changes: Changes
    files: int
    size: int
    tags: tuple[str, ...]
    pull_request: str | None
    creates: Literal["private", "public"] | None
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        difference = {name: list(getattr(self.changes, name)) for name in ("add", "change", "remove")}
        return {"ok": True, **vars(self), "tags": list(self.tags), "changes": difference}


def push(
    release: Release,
    repo_id: str,
    wish: Wish | None = None,
    *,
    progress: Progress | None = None,
    pauses: Sequence[float] = PAUSES,
) -> Published:
    """Publish `release` as the whole content of the model repository `repo_id` (owner/name).

    Run again after any fault it goes on and ends in the same content; what is published already is only
    verified. `pauses`: seconds between tries of one call. `InputError`: refused, or the Hub did not do it;
    no tag of this build names anything else. `GateFailed`: the server's digests are not the artifact's.
    """
    wish, progress = wish or Wish(), progress or Silent()
    _check_names(repo_id, wish)
    with progress.task("search for secrets"):
        _refuse_leaks(release)
    repository = Repository(repo_id, pauses=pauses)
    with progress.task("look at the repository"):
        state, tree, tags = _look(repository, release, wish)
    creates: Literal["private", "public"] | None = None
    if state is None:
        creates = wish.visibility or "private"
        if not wish.dry_run:
            repository.create(private=creates == "private")
            state, tree, tags = _look(repository, release, wish)
            if state is None:
                remedy = "let the token read what it creates"
                raise InputError(repository.url, "was created, but cannot be seen", remedy)
    planned = changes(release, tree)
    commit: Commit | None = None
    if state is not None and not wish.dry_run:
        commit = _commit(repository, release, wish, state, tree)
        with progress.task("verify"):
            _verify(repository, release, commit)
        for tag in () if commit.pull_request else tags:
            repository.tag(tag, commit.oid)
    elif state is not None and not planned:
        commit = Commit(state.head)
    untagged = commit.pull_request is not None if commit else wish.pull_request
    return Published(
        repository=repo_id,
        url=f"{repository.url}/tree/{commit.oid}" if commit else repository.url,
        digest=release.digest,
        parent=state.head if state else None,
        revision=commit.oid if commit else None,
        changes=planned,
        files=len(release.files),
        size=release.size,
        tags=() if untagged else _all_tags(release, wish),
        pull_request=commit.pull_request if commit else None,
        creates=creates,
        dry_run=wish.dry_run,
    )


def _look(
    repository: Repository, release: Release, wish: Wish
) -> tuple[State | None, Mapping[str, RemoteFile], tuple[str, ...]]:
    """The repository, its files, and the tags still to set. Refuses what publishing must not do to it."""
    state = repository.state(wish.branch)
    if state is None:
        if wish.pull_request:
            remedy = "push without --pull-request, or create it first"
            raise InputError(repository.url, "does not exist, so there is nothing to ask for a pull", remedy)
        return None, {}, _all_tags(release, wish)
    if wish.visibility and state.private != (wish.visibility == "private"):
        is_now = "private" if state.private else "public"
        raise InputError(
            repository.url, f"is {is_now}, not {wish.visibility}", "change that in its settings on the Hub"
        )
    tree = repository.tree(state.head)
    missing = tuple(
        tag for tag in _all_tags(release, wish) if not _is_set(repository, release, state, tree, tag)
    )
    strangers = changes(release, tree).remove
    if strangers and not wish.replace and SPEC not in tree:
        what = f"holds files that no build of Excise put there: {listed(strangers[:5])}"
        raise InputError(repository.url, what, "remove them with --replace, or push to another repository")
    return state, tree, missing


def _is_set(
    repository: Repository, release: Release, state: State, tree: Mapping[str, RemoteFile], tag: str
) -> bool:
    """Whether `tag` names this very content already. `InputError` where it names other content."""
    if tag in state.branches:
        raise InputError(repository.url, f"has a branch called '{tag}'", "choose another tag")
    oid = state.tags.get(tag)
    if oid is None:
        return False
    wrong = changes(release, tree if oid == state.head else repository.tree(oid))
    if wrong.only_signature:
        what = f"holds this very build already, signed otherwise, as '{tag}'; a tag is never moved"
        raise InputError(repository.url, what, "keep that release, or remove the tag on the Hub first")
    if wrong:
        what = f"the tag '{tag}' names another release ({oid[:12]}), and a tag is never moved"
        raise InputError(repository.url, what, "choose another tag")
    return True


def _commit(
    repository: Repository, release: Release, wish: Wish, state: State, tree: Mapping[str, RemoteFile]
) -> Commit:
    """The commit that holds the release: one that is there, else a new one on `state.head`."""
    there = _landed(repository, release, wish, state.head, tree)
    if there is not None:
        return there
    wanted = changes(release, tree)
    touched = {*wanted.add, *wanted.change}
    additions = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.content())
        for file in release.files
        if file.name in touched
    ]
    repository.upload(additions, wish.branch, pull_request=wish.pull_request)
    _check_sent(release, additions)
    return repository.commit(
        [*additions, *(CommitOperationDelete(name, is_folder=False) for name in wanted.remove)],
        parent=state.head,
        branch=wish.branch,
        pull_request=wish.pull_request,
        message=wish.message or f"Build {release.digest[:12]}",
        settle=lambda: _settle(repository, release, wish, state.head),
    )


def _landed(
    repository: Repository, release: Release, wish: Wish, head: str, tree: Mapping[str, RemoteFile]
) -> Commit | None:
    """Where the release is already: at the head, or on an open pull request if one was wished for."""
    if not changes(release, tree):
        return Commit(head)
    if wish.pull_request:
        for _, commit in sorted(repository.open_pull_requests().items(), reverse=True):
            if not changes(release, repository.tree(commit.oid)):
                return commit
    return None


def _settle(repository: Repository, release: Release, wish: Wish, parent: str) -> Commit | None:
    """After a fault while committing: the commit, if it was made; None, if it may be sent again."""
    state = repository.state(wish.branch)
    if state is None:
        raise InputError(repository.url, "is gone", "find out who removed it")
    tree = repository.tree(state.head)
    found = _landed(repository, release, wish, state.head, tree)
    if found is None and state.head != parent:
        what = f"'{wish.branch}' moved from {parent[:12]} to {state.head[:12]} meanwhile"
        raise InputError(repository.url, what, "look at what changed there, then push again")
    return found


def _check_sent(release: Release, additions: Sequence[CommitOperationAdd]) -> None:
    """What went out is what was hashed, and the server will not leave a file out of the commit."""
    digests = {file.name: file.sha256 for file in release.files}
    for addition in additions:
        if addition.upload_info.sha256.hex() != digests[addition.path_in_repo]:
            raise InputError(addition.path_in_repo, "changed while it was published", "push again")
        if addition._should_ignore:  # the only place where the client keeps the server's word on it
            raise InputError(
                addition.path_in_repo, "is ignored by the repository's .gitignore", "remove that file there"
            )


def _verify(repository: Repository, release: Release, commit: Commit) -> None:
    wrong = changes(release, repository.tree(commit.oid))
    if wrong:
        raise GateFailed(
            f"{repository.url} at {commit.oid[:12]} is not the artifact: {wrong}; no tag was set\n"
            "  help: revert that commit, then push again"
        )


def _refuse_leaks(release: Release) -> None:
    found = tuple(leaks(((file.name, file.path) for file in release.files), secrets()))
    if found:
        what = "; ".join(f"{leak.name} holds {leak.what}" for leak in found[:5])
        raise InputError("", what, "nothing was sent; remove it where it comes from and compile again")


def _check_names(repo_id: str, wish: Wish) -> None:
    if not REPOSITORY.fullmatch(repo_id):
        raise InputError(repo_id, "is no name of a repository", "write it as owner/name")
    for tag in wish.tags:
        if not TAG.fullmatch(tag):
            raise InputError(tag, "is no name of a tag", "use letters, digits, '.', '_' and '-'")


def _all_tags(release: Release, wish: Wish) -> tuple[str, ...]:
    return tuple(dict.fromkeys((BUILD_TAG + release.digest, *wish.tags)))
