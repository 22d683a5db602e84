"""One repository of the Hub through the Hub's own client: patient with passing faults, plain about others.

The client retries uploads and listings itself; commits, tags and look-ups it does not. Here every call is
tried again, and a call that may have worked although its answer was lost is settled by looking. Tokens are
left to the client (`hf auth login`, HF_TOKEN, trusted publishing).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
)
from huggingface_hub.errors import (
    OIDCError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from compiler.versions import library_versions
from editspec.errors import InputError
from exporters.hub_refusals import is_passing, refusal, status_of
from exporters.hub_silence import hidden, quiet
from exporters.release import RemoteFile

T = TypeVar("T")

PAUSES = (2.0, 10.0)  # seconds between our tries; one try of the client waits for 23 s in all
LOOK_SECONDS = 60.0
# The client itself waits without end: a dead server would hold a release for ever.
TIMEOUT = httpx2.Timeout(600, connect=30)
EVERY_FILE = "# nothing is ignored\n"  # in place of a .gitignore of the repository, which would drop files
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# What the client raises for what servers, networks and Xet do; a plain OSError is about a local file.
FAULTS = (
    httpx2.HTTPError,
    ConnectionError,
    TimeoutError,
    PermissionError,
    OIDCError,
    ValueError,
    RuntimeError,
    KeyError,
)


@dataclass(frozen=True)
class State:
    """A repository as it is: the commit that the branch names, visibility, all tags and branches."""

    head: str
    private: bool
    tags: dict[str, str]
    branches: dict[str, str]


@dataclass(frozen=True)
class Commit:
    """A commit of the repository, and the address of the pull request that it is on, if any."""

    oid: str
    pull_request: str | None = None


class Repository:
    """`repo_id` (owner/name) at the Hub that HF_ENDPOINT names. Every method raises `InputError`."""

    def __init__(self, repo_id: str, *, pauses: Sequence[float] = PAUSES) -> None:
        self.repo_id = repo_id
        self.endpoint = _endpoint()
        self.url = f"{_shown(self.endpoint)}/{repo_id}"
        self._pauses = pauses
        self._api = HfApi(
            endpoint=self.endpoint, library_name="excise", library_version=library_versions()["excise"]
        )

    def state(self, branch: str) -> State | None:
        """The repository now, or None where there is none."""

        def look() -> State | None:
            try:
                found = self._api.model_info(self.repo_id, revision=branch, timeout=LOOK_SECONDS)
            except RepositoryNotFoundError as error:
                if status_of(error) == 404:
                    return None
                raise
            except RevisionNotFoundError as error:
                remedy = "name one that is there with --branch"
                raise InputError(self.url, f"has no branch '{branch}'", remedy) from error
            refs = self._api.list_repo_refs(self.repo_id)
            tags = {tag.name: tag.target_commit for tag in refs.tags}
            branches = {ref.name: ref.target_commit for ref in refs.branches}
            return State(branches.get(branch, found.sha or ""), bool(found.private), tags, branches)

        return self._call("looking at the repository", look)

    def tree(self, revision: str) -> dict[str, RemoteFile]:
        """All files of a revision, by name, with the server's digests."""

        def look() -> dict[str, RemoteFile]:
            entries = self._api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
            return {
                entry.path: RemoteFile(
                    entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None
                )
                for entry in entries
                if isinstance(entry, RepoFile)
            }

        return self._call("listing the files of the repository", look)

    def open_pull_requests(self) -> dict[int, Commit]:
        """The last commit of every open pull request, by its number."""

        def look() -> dict[int, Commit]:
            refs = self._api.list_repo_refs(self.repo_id, include_pull_requests=True).pull_requests or []
            heads = {ref.ref: ref.target_commit for ref in refs}
            found = self._api.get_repo_discussions(
                self.repo_id, discussion_type="pull_request", discussion_status="open"
            )
            return {
                one.num: Commit(heads[f"refs/pr/{one.num}"], f"{self.url}/discussions/{one.num}")
                for one in found
                if f"refs/pr/{one.num}" in heads
            }

        return self._call("listing the pull requests", look)

    def create(self, *, private: bool) -> None:
        """Create the repository, empty; one that is there by now is left as it is."""
        self._call(
            "creating the repository",
            lambda: self._api.create_repo(
                self.repo_id, visibility="private" if private else "public", exist_ok=True
            ),
        )

    def upload(self, additions: Sequence[CommitOperationAdd], branch: str, *, pull_request: bool) -> None:
        """Send the large files that the server lacks. Nobody sees them before a commit names them."""
        self._call(
            "uploading",
            lambda: self._api.preupload_lfs_files(
                self.repo_id,
                additions,
                revision=branch,
                create_pr=pull_request,
                free_memory=False,
                gitignore_content=EVERY_FILE,
            ),
        )

    def commit(
        self,
        operations: Sequence[CommitOperationAdd | CommitOperationDelete],
        *,
        parent: str,
        branch: str,
        pull_request: bool,
        message: str,
        settle: Callable[[], Commit | None],
    ) -> Commit:
        """All `operations` as one commit on `parent`, or nothing.

        After a fault `settle` says which commit holds them already, or None where none does; only then it is
        sent again, on the same parent, so that of two that arrive late only one can win.
        """

        def send() -> Commit:
            made = self._api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=branch,
                parent_commit=parent,
                create_pr=pull_request,
            )
            return Commit(made.oid, made.pr_url)

        return self._call("committing", send, settle)

    def tag(self, name: str, oid: str) -> None:
        """Make the tag `name` of a commit. One that names another commit is left and refused."""

        def settle() -> bool | None:
            refs = self._call("listing the tags", lambda: self._api.list_repo_refs(self.repo_id))
            named = {tag.name: tag.target_commit for tag in refs.tags}.get(name)
            if named not in (None, oid):
                remedy = "choose another name: a tag is never moved"
                raise InputError(self.url, f"the tag '{name}' was set on {named} by someone else", remedy)
            return named == oid or None

        def make() -> bool:
            self._api.create_tag(self.repo_id, tag=name, revision=oid)
            return True

        self._call(f"setting the tag '{name}'", make, settle)

    def _call(self, doing: str, action: Callable[[], T], settle: Callable[[], T | None] | None = None) -> T:
        """What `action` returns, tried again after faults that pass, or what `settle` finds after a fault."""
        for pause in (*self._pauses, None):
            try:
                with self._quiet():
                    return action()
            except FAULTS as error:
                found = settle() if settle else None
                if found is not None:
                    return found
                if pause is None or not is_passing(error):
                    raise refusal(self.url, doing, error, self._secrets()) from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        session = get_session()
        before, session.timeout = session.timeout, TIMEOUT
        try:
            with quiet(self._secrets()):
                yield
        finally:
            session.timeout = before

    def _secrets(self) -> tuple[str, ...]:
        return secrets()


def secrets() -> tuple[str, ...]:
    """The token that the client would send, if any. `InputError` where trusted publishing cannot get one."""
    try:
        token = get_token()
    except (OIDCError, httpx2.HTTPError, json.JSONDecodeError) as error:
        said = hidden(str(error), ()).splitlines()[0]
        raise InputError("", f"no token from trusted publishing: {said}", "unset HF_OIDC_RESOURCE") from error
    return (token,) if token else ()


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return endpoint
    raise InputError(
        "HF_ENDPOINT", f"'{_shown(endpoint)}' would send the token unencrypted", "give an https address"
    )


def _shown(endpoint: str) -> str:
    """An address without the name and password that it may hold."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
