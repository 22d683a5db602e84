from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler import artifact as layout
from excise.cli import run

Output = tuple[int, str, str]


@pytest.fixture
def excise(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    """Run the command line in this process: exit code, stdout, stderr."""

    def call(*args: object) -> Output:
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def built(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "built"))


def key_pair(folder: Path, password: bytes | None = None) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    locked = s.BestAvailableEncryption(password) if password else s.NoEncryption()
    private, public = folder / "release.pem", folder / "release.pub"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, locked))
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_signed_artifact_verifies_and_a_changed_one_exits_with_3(
    excise: Callable[..., Output], built: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="needs the extra 'sign'")
    private, public = key_pair(tmp_path)
    code, out, _ = excise("sign", built, "--key", private)
    assert (code, out) == (0, f"{built / layout.SIGNATURE}\n")
    assert len((built / layout.ATTESTATIONS).read_text("ascii").splitlines()) == 2
    code, out, _ = excise("verify", built, "--key", public)
    assert code == 0
    assert "signature  verified" in out
    assert "whole:" in out
    (built / "unet/config.json").write_text("{}", "utf-8")
    code, out, err = excise("verify", built, "--key", public)
    assert code == 3
    assert "unet/config.json: is changed" in out
    assert "is not what was built" in err


def test_the_report_as_json_names_each_finding(excise: Callable[..., Output], built: Path) -> None:
    code, out, _ = excise("verify", built, "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True
    (built / "vae/config.json").unlink()
    code, out, _ = excise("verify", built, "--json")
    report = json.loads(out)
    assert code == 3
    assert report["ok"] is False
    assert {"check": "files", "path": "vae/config.json", "what": "is missing"} in report["findings"]


def test_without_a_key_the_user_is_told_that_nothing_shows_the_maker(
    excise: Callable[..., Output], built: Path
) -> None:
    code, _, err = excise("verify", built)
    assert code == 0
    assert "nothing shows who made it" in err


def test_what_is_no_artifact_is_bad_input(excise: Callable[..., Output], tmp_path: Path) -> None:
    code, out, err = excise("verify", tmp_path)
    assert (code, out) == (2, "")
    assert "not an artifact" in err


@pytest.mark.parametrize(
    "options", [("--spec", "x"), ("--identity", "a@b.c"), ("--key", "absent.pub")], ids=lambda o: str(o[0])
)
def test_options_that_mean_nothing_alone_are_bad_input(
    options: tuple[str, str], excise: Callable[..., Output], built: Path
) -> None:
    assert excise("verify", built, *options)[0] == 2


def test_signing_what_is_damaged_exits_with_3_and_signs_nothing(
    excise: Callable[..., Output], built: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="needs the extra 'sign'")
    (built / "extra").write_text("", "utf-8")
    code, _, err = excise("sign", built, "--key", key_pair(tmp_path)[0])
    assert code == 3
    assert "extra: is unexpected" in err
    assert not (built / layout.SIGNATURE).exists()


def test_an_encrypted_key_takes_its_password_from_the_environment(
    excise: Callable[..., Output], built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing", reason="needs the extra 'sign'")
    private, public = key_pair(tmp_path, b"open sesame")
    monkeypatch.setenv("EXCISE_KEY_PASSWORD", "open sesame")
    code, out, err = excise("sign", built, "--key", private, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    assert "sesame" not in out + err
    assert excise("verify", built, "--key", public)[0] == 0


def test_sigstore_out_of_reach_is_one_message(
    excise: Callable[..., Output], built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing", reason="needs the extra 'sign'")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a closed port
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    code, out, err = excise("sign", built, "--sigstore")
    assert (code, out) == (2, "")
    assert err.startswith("error: Sigstore: did not answer")
    assert len(err.splitlines()) == 2, "what is wrong, and what to do"


def test_a_rebuild_gives_the_same_digests_and_another_base_is_refused(
    excise: Callable[..., Output], built: Path, tiny_checkpoint: Path, tiny_checkpoint_fp16: Path
) -> None:
    code, out, err = excise(
        "verify", built, "--rebuild", "--base", tiny_checkpoint, "--device", "cpu", "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["rebuild"] == {"ok": True, "differences": [], "notes": []}
    code, out, _ = excise("verify", built, "--rebuild", "--base", tiny_checkpoint_fp16)
    assert code == 3
    assert "not those that this was made from" in out
    assert "rebuild" not in out, "what is refused already is not compiled again"


def test_a_rebuild_from_another_spec_is_bad_input(
    excise: Callable[..., Output], built: Path, tmp_path: Path
) -> None:
    spec = json.loads((built / layout.SPEC).read_text("utf-8"))
    spec["edits"][0]["concept"] = "moon"
    (tmp_path / "other.json").write_text(json.dumps(spec), "utf-8")
    code, _, err = excise("verify", built, "--rebuild", "--spec", tmp_path / "other.json")
    assert code == 2
    assert "not the spec" in err
