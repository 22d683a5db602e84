from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_hub import TOKEN, LocalHub

from compiler.artifact import SIGNATURE, Artifact
from exporters.hub import BUILD_TAG
from exporters.verify import verify_artifact

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "maker/hardened"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A maker's own repository: a spec, a pair of keys, and `excise` on the path."""
    folder = tmp_path_factory.mktemp("project")
    edit = {"id": "no-star", "edit": "erase", "concept": "star", "method": "closed-form", "anchor": "shape"}
    gate = {"gate": "drift", "prompts": ["a moon"], "max_drift": 0.9, "steps": 2, "trials": 2}
    spec = {"editspec": 1, "name": "hardened", "base": {"path": str(tiny_checkpoint)}, "edits": [edit]}
    (folder / "specs").mkdir()
    spec |= {"gates": [gate], "publish": {"license": "apache-2.0"}}
    (folder / "specs" / "hardened.json").write_text(json.dumps(spec), "utf-8")
    (folder / "keys").mkdir()
    _make_keys(folder / "keys")
    (folder / "bin").mkdir()
    command = folder / "bin" / "excise"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m excise "$@"\n', "utf-8")
    command.chmod(0o755)
    return folder


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


def _make_keys(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (folder / "release.pem").write_bytes(private)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "release.pub.pem").write_bytes(public)


def surroundings(project: Path, hub: LocalHub, **more: str) -> dict[str, str]:
    """The environment of a pipeline: nothing of this test's own but what a maker would set."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    return {
        **kept,
        "PATH": f"{project / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "EXCISE_CACHE": str(project / "cache"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }


def run(command: list[str], project: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


def require_release(hub: LocalHub, folder: Path, tag: str, key: Path) -> None:
    """The Hub holds the artifact, signed, whole, in one commit, under both tags."""
    report = verify_artifact(folder, key)
    assert (report.ok, report.signature) == (True, "verified")
    repository = hub.state.repositories[REPOSITORY]
    assert len(repository.revisions) == 2
    built = {name: (folder / name).read_bytes() for name in Artifact(folder).files()}
    assert SIGNATURE in built
    for name in ("main", tag, BUILD_TAG + report.digest):
        assert hub.files(REPOSITORY, name) == built


def test_the_shell_pipeline_releases_a_signed_checkpoint(project: Path, hub: LocalHub) -> None:
    keys = project / "keys"
    environment = surroundings(
        project, hub, SIGNING_KEY=str(keys / "release.pem"), PUBLIC_KEY=str(keys / "release.pub.pem")
    )
    arguments = ["specs/hardened.json", "build/shell", REPOSITORY, "v1.0.0"]
    out = run(["bash", str(ROOT / "examples" / "release.sh"), *arguments], project, environment)
    require_release(hub, project / "build" / "shell", "v1.0.0", keys / "release.pub.pem")
    assert out.rstrip().endswith(hub.state.repositories[REPOSITORY].branches["main"])


def test_the_github_workflow_releases_a_signed_checkpoint(project: Path, hub: LocalHub) -> None:
    text = (ROOT / "examples" / "github-actions" / "release.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    keys = project / "keys"
    values = {
        "github.workspace": str(project),
        "secrets.SIGNING_KEY": (keys / "release.pem").read_text("ascii"),
        "secrets.HF_TOKEN": TOKEN,
    }
    temporary = project / "runner"
    temporary.mkdir()
    environment = surroundings(project, hub) | expanded(workflow["env"], values)
    environment |= {"REPOSITORY": REPOSITORY, "EXCISE_CACHE": str(project / "cache")}
    environment |= {"GITHUB_REF_NAME": "v2.0.0", "RUNNER_TEMP": str(temporary)}
    environment["GITHUB_STEP_SUMMARY"] = str(temporary / "summary.md")
    del environment["HF_TOKEN"]
    assert "HF_TOKEN" not in expanded(workflow["env"], values)  # only the last step sees it
    names = []
    for job in ("check", "release"):
        for step in workflow["jobs"][job]["steps"]:
            if "run" not in step or step["name"] == "install":
                continue
            names.append(step["name"])
            own = environment | expanded(step.get("env", {}), values)
            shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            run(shell, project, own)
    assert names == ["check", "plan", "compile", "gate", "sign", "verify", "push"]
    require_release(hub, project / "build" / "hardened", "v2.0.0", keys / "release.pub.pem")
    assert [path.name for path in temporary.iterdir()] == ["summary.md"]  # the key is gone


def expanded(variables: dict[str, Any], values: dict[str, str]) -> dict[str, str]:
    """Variables with what GitHub puts in place of `${{ ... }}`; one that is not known is an error."""
    return {
        name: re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda found: values[found[1]], str(value))
        for name, value in variables.items()
    }
