from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from compiler import base as bases
from compiler.base import open_base, register_embedded, weight_files
from compiler.checkpoint import Checkpoint
from editspec.errors import InputError
from editspec.model import HubBase, PathBase

COMMIT = "0123456789abcdef" * 2 + "01234567"

Copy = Callable[[Path], Path]


class FakeHub:
    """The reading half of the Hub's protocol over one folder, with a record of what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refuse: str | None = None  # the Hub's error code for every answer
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(f"{self.command} {path}")
                if hub.refuse:
                    self.answer(
                        403 if hub.refuse == "GatedRepo" else 404, b"{}", {"X-Error-Code": hub.refuse}
                    )
                elif path == f"/api/models/org/name/tree/{COMMIT}":
                    self.answer(200, json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"})
                elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
                    data = (hub.folder / path.split(COMMIT + "/")[1]).read_bytes()
                    self.answer(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{blob_id(data)}"'})
                else:
                    self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

            def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def listing(self) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "oid": blob_id(path.read_bytes()),
            }
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        ]

    def fetched(self) -> set[str]:
        return {
            line.split(COMMIT + "/")[1] for line in self.asked if line.startswith("GET /org/name/resolve")
        }


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    hub = FakeHub(copy_of(tiny_checkpoint))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_a_local_base_lies_relative_to_its_spec(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = open_base(PathBase(path=tiny_checkpoint.name), tiny_checkpoint.parent)
    assert found.digest == Checkpoint.open(tiny_checkpoint).digest
    assert open_base(PathBase(path=str(tiny_checkpoint)), tmp_path).digest == found.digest
    with pytest.raises(InputError, match="does not exist"):
        open_base(PathBase(path="absent"), tmp_path)


def test_an_embedded_base_is_called_by_its_name(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "_EMBEDDED", {})
    register_embedded("pocket", lambda: tiny_checkpoint)
    assert open_base(PathBase(path="pocket"), tmp_path).root == tiny_checkpoint
    with pytest.raises(InputError, match="does not exist"):
        open_base(PathBase(path="./pocket"), tmp_path)


def test_of_a_hub_base_only_the_needed_files_are_fetched(hub: FakeHub, tiny_checkpoint: Path) -> None:
    strays = ["README.md", "v1-4.ckpt", "pipeline.py", "unet/diffusion_pytorch_model.bin"]
    strays += ["vae/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.bin"]
    for stray in strays:
        (hub.folder / stray).parent.mkdir(exist_ok=True)
        (hub.folder / stray).write_text("stray")
    checkpoint = open_base(HubBase(repo="org/name", revision=COMMIT), Path())
    assert checkpoint.digest == Checkpoint.open(tiny_checkpoint).digest
    assert hub.fetched() == {*checkpoint.files(), "README.md"}  # which states the licence


def test_a_hub_base_that_is_there_needs_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    base = HubBase(repo="org/name", revision=COMMIT)
    digest = open_base(base, Path()).digest
    hub.asked.clear()
    assert open_base(base, Path()).digest == digest
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_base(base, Path()).digest == digest


def test_a_hub_base_that_is_there_in_part_is_completed(hub: FakeHub, tiny_checkpoint: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download("org/name", "unet/config.json", revision=COMMIT)
    base = HubBase(repo="org/name", revision=COMMIT)
    snapshot = open_base(base, Path()).root
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert open_base(base, Path()).digest == Checkpoint.open(tiny_checkpoint).digest


def test_a_variant_of_a_hub_base_is_fetched_alone(hub: FakeHub, tiny_checkpoint_fp16: Path) -> None:
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        shutil.copy(tiny_checkpoint_fp16 / f"{name}.safetensors", hub.folder / f"{name}.fp16.safetensors")
    checkpoint = open_base(HubBase(repo="org/name", revision=COMMIT, variant="fp16"), Path())
    assert checkpoint.weights("unet").entries["conv_in.weight"].dtype == "F16"
    assert "unet/diffusion_pytorch_model.safetensors" not in hub.fetched()
    assert "vae/diffusion_pytorch_model.safetensors" in hub.fetched()


def test_a_hub_base_of_pickles_is_refused_without_fetching_them(hub: FakeHub) -> None:
    weights = hub.folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match="pickle") as caught:
        open_base(HubBase(repo="org/name", revision=COMMIT), Path())
    assert caught.value.where == "org/name@0123456789ab/unet"
    assert not any(name.endswith((".bin", ".safetensors")) for name in hub.fetched())


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT.upper(), COMMIT + "0", ""])
def test_a_hub_base_at_a_revision_that_can_move_is_refused(hub: FakeHub, revision: str) -> None:
    with pytest.raises(InputError, match="can move"):
        open_base(HubBase(repo="org/name", revision=revision), Path())
    assert hub.asked == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RepoNotFound", "is no repository that can be seen"),
        ("GatedRepo", "gated"),
        ("RevisionNotFound", "no such commit"),
    ],
)
def test_what_the_hub_refuses_is_said_plainly(hub: FakeHub, code: str, message: str) -> None:
    hub.refuse = code
    with pytest.raises(InputError, match=message):
        open_base(HubBase(repo="org/name", revision=COMMIT), Path())


def test_a_hub_that_cannot_be_reached_is_bad_input(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be reached"):
        open_base(HubBase(repo="org/name", revision=COMMIT), Path())
    with pytest.raises(InputError):
        open_base(HubBase(repo="no/such/name", revision=COMMIT), Path())


def test_shards_come_with_their_index() -> None:
    stem = "unet/diffusion_pytorch_model"
    listing = [
        "model_index.json",
        f"{stem}.safetensors.index.json",
        f"{stem}-00001-of-00002.safetensors",
        f"{stem}-00002-of-00002.safetensors",
        f"{stem}.safetensors.index.fp16.json",
        f"{stem}.fp16-00001-of-00001.safetensors",
        f"{stem}-00001-of-00001.fp16.safetensors",
        f"{stem}.bin",
        "unet/nested/diffusion_pytorch_model.safetensors",
        "other/model.safetensors",
    ]
    assert weight_files(listing, ["unet"], None) == listing[1:4]
    assert weight_files(listing, ["unet"], "fp16") == listing[4:7]
    assert weight_files(listing, ["unet"], "bf16") == listing[1:4]
    assert weight_files(["unet/config.json"], ["scheduler", "unet"], None) == []
