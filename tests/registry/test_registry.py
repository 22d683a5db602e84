from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compiler.artifact import GATES, MANIFEST, Artifact
from editspec.errors import GateFailed, InputError
from registry.adding import add
from registry.catalogue import Registry
from registry.checking import check
from registry.exporting import RECORDS, export, write_records
from registry.history import CANDIDATE, DROPPED, RELEASED, WITHDRAWN
from registry.pulling import pull
from registry.sweep import sweep

K, V, MID = "down.attn2.to_k.weight", "down.attn2.to_v.weight", "mid.weight"


@pytest.fixture
def registry(place: Any) -> Registry:
    return Registry.open(place.folder, index=place.index, store=place.store, create=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_is_pulled_is_what_was_added_byte_for_byte(
    registry: Registry, make_build: Any, tmp_path: Path
) -> None:
    folder = make_build("hardened", {K: 1})
    added = add(registry, folder, by="ann")
    assert added.new
    assert added.size == sum(len(data) for data in contents(folder).values())
    pull(registry, added.build[:8], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        0o644
    }
    assert check(registry, registry.entries(), deep=True) == []
    again = add(registry, folder)
    assert (again.build, again.new, again.stored) == (added.build, False, 0)
    (event,) = registry.history(registry.find("hardened"))
    assert (event.state, event.by) == (CANDIDATE, "ann")


def test_variants_of_one_base_share_every_tensor_that_no_edit_touched(
    registry: Registry, make_build: Any, base_folder: Path
) -> None:
    base = add(registry, base_folder, name="base")
    for seed in range(1, 4):
        added = add(registry, make_build(f"v{seed}", {K: seed}))
        tensor = 4 * 64 * 32
        assert 2 * tensor < added.stored < 2 * tensor + 24_000  # it, its change, provenance and recipes
        assert added.stored < added.size / 4
    total = sum(entry.size for entry in registry.entries())
    assert registry.stored_bytes() < total / 2
    assert registry.stored_bytes() > base.stored


def test_a_name_means_its_newest_released_build(registry: Registry, make_build: Any) -> None:
    one, two, three = (add(registry, make_build("model", {K: seed})).build for seed in (1, 2, 3))
    with pytest.raises(InputError, match="has 3 builds and none is released"):
        registry.find("model")
    registry.promote(two, RELEASED)
    registry.promote(one, RELEASED)
    assert registry.find("model").build == two  # newest by when it was added
    registry.promote(two, WITHDRAWN, reason="leaks")
    assert registry.find("model").build == one
    assert registry.find(three[:6]).state == CANDIDATE
    with pytest.raises(InputError, match="did you mean 'model'"):
        registry.find("modl")
    assert [entry.build for entry in registry.entries(state=RELEASED)] == [one]
    assert len(registry.entries(name="model")) == 3


def test_a_withdrawn_build_says_why_and_stays_out(
    registry: Registry, make_build: Any, tmp_path: Path
) -> None:
    folder = make_build("model", {K: 1})
    build = add(registry, folder).build
    registry.promote(build, WITHDRAWN, reason="draws what it must not", by="ann")
    with pytest.raises(GateFailed, match="withdrawn: draws what it must not"):
        pull(registry, build, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="was withdrawn: draws what it must not"):
        add(registry, folder)
    with pytest.raises(InputError, match="that is final"):
        registry.promote(build, RELEASED)
    pull(registry, build, tmp_path / "out", withdrawn=True)
    assert contents(tmp_path / "out") == contents(folder)
    assert [event.reason for event in registry.history(registry.find(build))] == [
        "",
        "draws what it must not",
    ]


def test_a_build_that_failed_a_gate_is_kept_but_never_released(registry: Registry, make_build: Any) -> None:
    build = add(registry, make_build("model", {K: 1}, passed=False)).build
    with pytest.raises(GateFailed, match=r"failed its gates \(erased-star\)"):
        registry.promote(build, RELEASED)
    assert registry.find(build).state == CANDIDATE


def test_an_artifact_that_was_changed_after_its_build_is_not_taken_in(
    registry: Registry, make_build: Any
) -> None:
    folder = make_build("model", {K: 1})
    Artifact(folder).path(GATES).write_text('{"passed": true, "gates": []}', "utf-8")
    with pytest.raises(GateFailed, match=r"gates\.json: is changed"):
        add(registry, folder)
    assert registry.entries() == []


def test_a_signature_made_later_joins_its_build_and_is_noted(
    registry: Registry, make_build: Any, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from exporters.sign import Signer, sign_artifact

    folder = make_build("model", {K: 1})
    build = add(registry, folder).build
    key = tmp_path / "key.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    sign_artifact(folder, Signer(key))
    again = add(registry, folder, by="ann")
    assert (again.build, again.new) == (build, False)
    pull(registry, build, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)
    assert "model.sig" in contents(folder)
    note = registry.history(registry.find(build))[-1]
    assert (note.state, note.by) == (CANDIDATE, "ann")
    assert "model.sig" in note.reason
    sign_artifact(folder, Signer(key), force=True)
    with pytest.raises(InputError, match="with other bytes"):
        add(registry, folder)
    assert check(registry, registry.entries(), deep=True) == []


def test_lineage_goes_from_the_base_to_what_was_undone(
    registry: Registry, make_build: Any, base_folder: Path
) -> None:
    base = add(registry, base_folder, name="base").build
    one = add(registry, make_build("one", {K: 1, V: 2})).build
    derived = {"derived": {"relation": "undo", "build": one, "edit": V}}
    two = add(registry, make_build("two", {K: 1}, lock=derived)).build

    def named(pairs: Any) -> set[tuple[str, str]]:
        return {(relation, entry.build) for relation, entry in pairs}

    assert named(registry.ancestry(two).parents) == {("base", base), ("undo", one)}
    assert named(registry.ancestry(one).children) == {("undo", two)}
    assert named(registry.ancestry(base).children) == {("base", one), ("base", two)}
    assert registry.ancestry(base).parents == ()


def test_a_build_on_a_build_has_it_as_its_base(registry: Registry, make_build: Any) -> None:
    first = make_build("first", {K: 1})
    one = add(registry, first).build
    two = add(registry, make_build("second", {V: 2}, base=first)).build
    ((relation, entry),) = registry.ancestry(two).parents
    assert (relation, entry.build) == ("base", one)


def damage(registry: Registry, digest: str, data: bytes) -> None:
    registry.store._files.pipe_file(registry.store._path(digest), data)


def test_every_flipped_bit_in_the_store_is_found_and_named(
    registry: Registry, make_build: Any, tmp_path: Path
) -> None:
    build = add(registry, make_build("model", {K: 1})).build
    sizes = registry.store.sizes()
    for digest in sorted(sizes)[:: max(1, len(sizes) // 6)]:
        data = registry.store.get(digest)
        place = len(data) // 2
        damage(registry, digest, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        problems = check(registry, registry.entries())
        assert problems, digest
        assert {problem.build for problem in problems} == {build}
        with pytest.raises(GateFailed, match="cannot be pulled"):
            pull(registry, build, tmp_path / "out")
        with pytest.raises(GateFailed):
            registry.promote(build, RELEASED)
        damage(registry, digest, data)
    assert check(registry, registry.entries(), deep=True) == []
    assert not (tmp_path / "out").exists()
    gone = max(sizes, key=lambda digest: sizes[digest])
    registry.store.remove([gone])
    assert {problem.what for problem in check(registry, registry.entries())} == {
        f"blob {gone[:12]} is missing"
    }


def test_gc_removes_orphans_and_on_request_what_was_withdrawn(
    registry: Registry, make_build: Any, tmp_path: Path
) -> None:
    kept, other = make_build("kept", {K: 1}), make_build("other", {K: 2, MID: 3})
    build, gone = add(registry, kept).build, add(registry, other).build
    registry.store.put("0" * 64, b"left by a killed writer")
    assert sweep(registry, dry_run=True).removed == 1
    assert "0" * 64 in registry.store.sizes()
    assert sweep(registry).removed == 1
    registry.promote(gone, WITHDRAWN, reason="weak")
    assert sweep(registry).removed == 0
    swept = sweep(registry, withdrawn=True)
    assert swept.dropped == (gone,)
    assert swept.removed_bytes > 4 * 128 * 128
    assert registry.stored_bytes() == sum(registry.store.sizes().values()) == swept.kept_bytes
    assert [(event.state, event.reason) for event in registry.history(registry.find(gone))][1:] == [
        (WITHDRAWN, "weak"),
        (DROPPED, "weak"),
    ]
    with pytest.raises(GateFailed, match="its bytes were removed: weak"):
        pull(registry, gone, tmp_path / "out", withdrawn=True)
    assert check(registry, registry.entries(), deep=True) == []
    pull(registry, build, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(kept)
    assert registry.files(registry.find(gone))  # what it was made of stays on record


def test_gc_removes_nothing_while_a_recipe_is_damaged(registry: Registry, make_build: Any) -> None:
    add(registry, make_build("model", {K: 1}))
    registry.store.put("0" * 64, b"an orphan")
    recipe = next(
        name
        for name in registry.store.sizes()
        if name != "0" * 64 and registry.store.get(name)[:9] == b'{"recipe"'
    )
    damage(registry, recipe, b"{}")
    with pytest.raises(GateFailed, match="nothing was removed"):
        sweep(registry)
    assert "0" * 64 in registry.store.sizes()


def test_an_export_is_a_registry_with_the_same_histories(
    registry: Registry, make_build: Any, tmp_path: Path
) -> None:
    one, two = (make_build(name, {K: seed}) for seed, name in enumerate(("one", "two")))
    build, other = add(registry, one).build, add(registry, two).build
    registry.promote(build, RELEASED, by="ann")
    target = Registry.open(tmp_path / "exported", create=True)
    assert export(registry, target, [registry.find(build)]).new == 1
    pull(target, "one", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(one)
    assert target.history(target.find(build)) == registry.history(registry.find(build))

    registry.promote(build, WITHDRAWN, reason="later")
    done = export(registry, target, registry.entries())
    assert (done.builds, done.new) == (2, 1)
    assert target.find(build).state == WITHDRAWN
    assert check(target, target.entries(), deep=True) == []
    assert export(registry, target, registry.entries()).stored == 0

    target.promote(other, WITHDRAWN, reason="here only")
    registry.promote(other, RELEASED)
    with pytest.raises(InputError, match="has another history in the target"):
        export(registry, target, registry.entries())
    write_records(target, target.entries(), tmp_path / RECORDS)
    lines = [json.loads(line) for line in (tmp_path / RECORDS).read_text("utf-8").splitlines()]
    for line in lines:
        assert line["build"] in [file["sha256"] for file in line["files"] if file["path"] == MANIFEST]
    assert [event["state"] for line in lines for event in line["history"]].count(CANDIDATE) == 2


def test_a_place_that_is_taken_is_left_alone(registry: Registry, make_build: Any, tmp_path: Path) -> None:
    first, second = make_build("a", {K: 1}), make_build("b", {K: 2})
    one, two = add(registry, first).build, add(registry, second).build
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine", "utf-8")
    for force in (False, True):
        with pytest.raises(InputError, match="exists"):
            pull(registry, one, tmp_path / "out", force=force)
    pull(registry, one, tmp_path / "new")
    pull(registry, two, tmp_path / "new", force=True)
    assert contents(tmp_path / "new") == contents(second)
    assert (tmp_path / "out" / "mine").read_text("utf-8") == "mine"


def test_index_and_store_must_belong_together(registry: Registry, make_build: Any, tmp_path: Path) -> None:
    add(registry, make_build("model", {K: 1}))
    Registry.open(tmp_path / "other", create=True)
    url = f"sqlite:///{tmp_path / 'other' / 'index.sqlite'}"
    with pytest.raises(InputError, match="belongs to another registry"):
        Registry.open(index=url, store=registry.store.url)
    with pytest.raises(InputError, match="holds no registry"):
        Registry.open(index=url, store=str(tmp_path / "nowhere"))
