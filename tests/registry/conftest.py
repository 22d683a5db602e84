"""Builds of a few hundred kB in the true layout, and real servers to keep them: PostgreSQL and S3."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from compiler.artifact import DELTAS, EDITS, GATES, LOCK, PLAN, SPEC, Artifact
from compiler.checkpoint import Checkpoint
from compiler.safetensors_file import TensorEntry, encode_header
from editspec.canonical import digest as canonical_digest
from exporters.manifest import write_manifest

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "unet": {
        "conv_in.bias": (32,),
        "conv_in.weight": (32, 4, 3, 3),
        "down.attn2.to_k.weight": (64, 32),
        "down.attn2.to_v.weight": (64, 32),
        "down.norm.bias": (64,),
        "down.norm.weight": (64,),
        "mid.weight": (128, 128),
        "up.bias": (48,),
    },
    "vae": {"decoder.weight": (64, 64), "encoder.weight": (64, 64)},
    "text_encoder": {"embedding.weight": (100, 32)},
}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS: dict[str, dict[str, Any]] = {
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 32,
    },
    "vae/config.json": {"_class_name": "AutoencoderKL", "latent_channels": 4},
    "text_encoder/config.json": {"hidden_size": 32},
    "tokenizer/tokenizer.json": {},
    "scheduler/scheduler_config.json": {},
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    },
}


class MakeBuild(Protocol):
    """`make_build("name", {"down.attn2.to_k.weight": 5})`: an artifact whose tensors have those seeds."""

    def __call__(self, name: str, edited: Mapping[str, int], **more: Any) -> Path: ...


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that stock diffusers would open, with drawn bytes for weights; never change it."""
    return write_checkpoint(tmp_path_factory.mktemp("bases") / "base", {})


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[[int], Path]:
    """Another base: the one with that seed."""
    return lambda seed: write_checkpoint(
        tmp_path / f"base-{seed}", {name: seed for names in SHAPES.values() for name in names}
    )


@pytest.fixture
def make_build(tmp_path: Path, base_folder: Path) -> MakeBuild:
    """A function that writes an artifact as a compile does, apart from computing it."""

    def make(name: str, edited: Mapping[str, int], **more: Any) -> Path:
        base: Path = more.get("base", base_folder)
        number = sum(1 for _ in tmp_path.glob("build-*"))
        folder = write_checkpoint(tmp_path / f"build-{number}", edited, like=base)
        artifact, checkpoint = Artifact(folder), Checkpoint.open(base)
        passed: bool = more.get("passed", True)
        gate, runs = {"id": "erased-star"}, [{"pass": "erase/x", "version": 1, "edits": [*edited], "key": ""}]
        spec: dict[str, Any] = {"name": name, "seed": 0, "base": {"path": base.name}, "gates": [gate]}
        spec["edits"] = [{"id": tensor} for tensor in edited]
        libraries, digest = {"excise": "0"}, checkpoint.digest
        lock = {
            "lock": 1,
            "spec": canonical_digest(spec),
            "seed": "0",
            "base": {**spec["base"], "family": "sd1", "digest": digest, "files": checkpoint.digests()},
            "libraries": libraries,
            "device": {"class": "cpu", "threads": 1},
            **more.get("lock", {}),
        }
        plan = {"spec": lock["spec"], "base": digest, "libraries": libraries, "device": "cpu", "passes": runs}
        artifact.write(SPEC, spec)
        artifact.write(LOCK, lock)
        artifact.write(PLAN, {**plan, "gates": [gate]})
        artifact.write(EDITS, {"passes": runs, "tensors": {"changed": len(edited)}})
        measured = {"base": digest, "edited": Checkpoint.open(folder).digest}
        artifact.write(GATES, {**measured, "passed": passed, "gates": [{**gate, "passed": passed}]})
        write_tensors(artifact.path(DELTAS), {tensor: SHAPES["unet"][tensor] for tensor in edited}, edited)
        write_manifest(artifact)
        return folder

    return make


def write_checkpoint(folder: Path, seeds: Mapping[str, int], like: Path | None = None) -> Path:
    """A checkpoint whose tensors are drawn from their seeds, 0 unless given; other files as in `like`."""
    if like is not None:
        shutil.copytree(like, folder)
        seeds = {"conv_in.bias": 0, **seeds}
    for name, config in CONFIGS.items() if like is None else ():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Artifact(folder).write(name, config)
    for component, shapes in SHAPES.items():
        if like is None or seeds.keys() & shapes.keys():
            write_tensors(folder / component / f"{STEMS[component]}.safetensors", shapes, seeds)
    return folder


def write_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], seeds: Mapping[str, int]) -> None:
    """fp32 tensors of drawn bytes."""
    entries = [TensorEntry(name, "F32", shape, path, 0, 0) for name, shape in sorted(shapes.items())]
    entries = [
        TensorEntry(entry.name, "F32", entry.shape, path, 0, 4 * entry.parameters) for entry in entries
    ]
    data = (
        random.Random(f"{entry.name} {seeds.get(entry.name, 0)}").randbytes(entry.stop) for entry in entries
    )
    path.write_bytes(encode_header(entries) + b"".join(data))


@dataclass(frozen=True)
class Place:
    """Where a test's registry is: the options of `Registry.open`, and the environment of its processes."""

    folder: Path
    index: str | None
    store: str | None
    environment: Mapping[str, str]


@pytest.fixture(params=["sqlite and a folder", "postgresql and s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty place for a registry: once both parts local, once both behind a real server."""
    folder = tmp_path / "registry"
    if request.param == "sqlite and a folder":
        return Place(folder, None, None, {})
    index: Callable[[], str] = request.getfixturevalue("new_database")
    environment: Mapping[str, str] = request.getfixturevalue("s3_environment")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Place(folder, index(), f"s3://{new_bucket(environment)}/some/prefix", environment)


@pytest.fixture
def new_database(postgresql: str) -> Callable[[], str]:
    """A function that makes an empty database and gives its URL."""
    import psycopg

    def make() -> str:
        name = f"t{os.urandom(6).hex()}"
        with psycopg.connect(f"host={postgresql} user=excise dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://excise@/{name}?host={postgresql}"

    return make


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The socket folder of a PostgreSQL server of our own; its user is excise."""
    binaries = postgresql_binaries()
    if binaries is None:  # .ci/run installs a server; README's commands, which need none, must hold without
        pytest.skip("no PostgreSQL here: put initdb and pg_ctl on the PATH, or apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="excise-pg-", dir="/tmp"))
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        owner = _account()
        shutil.chown(folder, owner)
        account = {"user": owner, "extra_groups": []}
    data = folder / "data"

    def call(program: str, *arguments: object) -> None:
        command: list[str | Path] = [binaries / program, "-D", data, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=False, **account)
        assert done.returncode == 0, Path(log.name).read_text("utf-8")

    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        try:
            call("initdb", "-A", "trust", "-U", "excise", "--no-sync", "-E", "UTF8", "--locale=C")
            options = f"-F -k {folder} -c listen_addresses='' -c max_connections=60"
            call("pg_ctl", "-w", "-t", 120, "-l", folder / "server.log", "-o", options, "start")
            yield str(folder)
            call("pg_ctl", "-m", "immediate", "stop")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _account() -> str:
    """A user without rights."""
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def postgresql_binaries() -> Path | None:
    """The folder of the newest server's programs."""
    found = shutil.which("initdb")
    if found and shutil.which("pg_ctl"):
        return Path(found).parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return debian[-1].parent if debian else None


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[Mapping[str, str]]:
    """An S3 server on loopback; the variables that lead to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    server.stop()


def new_bucket(environment: Mapping[str, str]) -> str:
    """The name of an empty bucket."""
    import boto3

    name = f"bucket-{os.urandom(6).hex()}"
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=name)
    return name
