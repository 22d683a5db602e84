from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_hub import TOKEN, LocalHub

from compiler.artifact import CARD, GATES, Artifact
from excise.cli import run
from exporters.manifest import write_manifest

Output = tuple[int, str, str]
Excise = Callable[..., Output]


@pytest.fixture
def excise(capsys: pytest.CaptureFixture[str]) -> Excise:
    def call(*args: object) -> Output:
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "built"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with LocalHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_push_prints_the_address_of_what_it_published(excise: Excise, hub: LocalHub, folder: Path) -> None:
    code, out, err = excise("push", folder, "maker/small", "--tag", "v1")
    repository = hub.state.repositories["maker/small"]
    head = repository.branches["main"]
    assert (code, out) == (0, f"{hub.endpoint}/maker/small/tree/{head}\n")
    assert "created the private repository" in err
    assert "tagged v1" in err
    assert repository.revisions[head].title.startswith("tiny: build ")
    code, out, _ = excise("push", folder, "maker/small", "--json", "--dry-run")
    facts = json.loads(out)
    assert code == 0
    assert (facts["ok"], facts["revision"], facts["dry_run"]) == (True, head, True)
    assert facts["changes"] == {"add": [], "change": [], "remove": []}


def test_what_downloading_added_to_the_folder_is_not_published(
    excise: Excise, hub: LocalHub, folder: Path
) -> None:
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "lock").write_text("", "utf-8")
    (folder / ".gitattributes").write_text("", "utf-8")
    assert excise("push", folder, "maker/small")[0] == 0
    assert set(hub.files("maker/small")) == {
        name for name in Artifact(folder).files() if not name.startswith((".cache", ".gitattributes"))
    }


@pytest.mark.parametrize("damage", ["changed", "missing", "unexpected"])
def test_a_damaged_artifact_is_refused_and_the_hub_never_asked(
    excise: Excise, hub: LocalHub, folder: Path, damage: str
) -> None:
    if damage == "changed":
        (folder / CARD).write_text("another card", "utf-8")
    elif damage == "missing":
        (folder / "tokenizer" / "tokenizer_config.json").unlink()
    else:
        (folder / "unet" / "more.py").write_text("import os", "utf-8")
    code, out, err = excise("push", folder, "maker/small")
    assert (code, out) == (3, "")
    assert "nothing was sent" in err
    assert hub.requests == []


def test_an_artifact_that_failed_its_gates_is_refused(excise: Excise, hub: LocalHub, folder: Path) -> None:
    artifact = Artifact(folder)
    gates = artifact.read(GATES)
    gates["passed"] = gates["gates"][0]["passed"] = False
    artifact.write(GATES, gates)
    write_manifest(artifact)
    code, _, err = excise("push", folder, "maker/small")
    assert code == 3
    assert "this build was rejected" in err
    assert hub.requests == []


def test_an_unsigned_artifact_is_refused_where_a_key_is_asked_for(
    excise: Excise, hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = tmp_path / "key.pub.pem"
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    code, _, err = excise("push", folder, "maker/small", "--key", key)
    assert code == 3
    assert "nobody signed this artifact" in err
    assert hub.requests == []


def test_a_refusal_is_one_message_and_never_names_the_token(
    excise: Excise, hub: LocalHub, folder: Path
) -> None:
    hub.fail("/objects/batch", "expired")
    code, out, err = excise("push", folder, "maker/small", "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert "the token is missing, wrong or expired" in error["message"]
    assert TOKEN not in out + err
