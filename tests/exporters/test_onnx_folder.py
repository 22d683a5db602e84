from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import exporters.onnx_folder
import exporters.onnx_graphs
from compiler.checkpoint import Checkpoint
from compiler.generate import Draw, Sampler, Sampling
from editspec import GateFailed, InputError
from exporters.onnx_folder import OnnxExport, export_onnx
from exporters.onnx_graphs import graphs, write_graph
from exporters.onnx_sampler import Model, OnnxSampler, is_onnx_folder, providers_for

Copy = Callable[[Path], Path]
Exported = tuple[Path, OnnxExport]

DRAW = Draw("a red star", 7)


@pytest.fixture(scope="module")
def exported(shallow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small checkpoint as an fp32 ONNX folder, with its report. Costs most of this file's time."""
    out = tmp_path_factory.mktemp("onnx") / "small"
    return out, export_onnx(Checkpoint.open(shallow_checkpoint), out, steps=2)


@pytest.fixture
def text_encoder_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports stop after the smallest graph: for what is the same with every graph."""
    every = exporters.onnx_graphs.graphs
    monkeypatch.setattr(exporters.onnx_graphs, "graphs", lambda checkpoint: every(checkpoint)[:1])


@pytest.mark.slow
def test_every_model_and_a_whole_picture_are_what_torch_computes(exported: Exported) -> None:
    out, report = exported
    assert [model.model for model in report.models] == [
        "text_encoder",
        "unet",
        "vae_decoder",
        "vae_encoder",
    ]
    assert all(model.passed and model.max_abs <= 1e-4 and len(model.cases) == 3 for model in report.models)
    shapes = [case["sample"] for case in report.models[1].cases]
    assert shapes == [[1, 4, 8, 8], [2, 4, 4, 8], [1, 4, 8, 4]]
    assert report.image is not None
    assert report.image.passed
    assert report.image.psnr >= 45
    assert json.loads((out / "parity.json").read_text())["models"] == [one.as_dict() for one in report.models]


@pytest.mark.slow
def test_a_graph_takes_more_pictures_at_once_than_it_was_traced_with(exported: Exported) -> None:
    out, _ = exported
    decoder = Model(out / "vae_decoder", "cpu")
    rows = np.random.default_rng(0).standard_normal((70, 4, 2, 2), dtype=np.float32)
    together = decoder(latent_sample=rows)["sample"]
    alone = decoder(latent_sample=rows[69:])["sample"]
    assert together.shape == (70, 3, 4, 4)
    assert np.abs(together[69:] - alone).max() < 1e-5


@pytest.mark.slow
def test_the_layout_is_the_one_that_onnx_runtime_pipelines_load(exported: Exported) -> None:
    out, _ = exported
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    models = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
    parts = ("config.json", "model.onnx", "model.onnx_data")
    expected = {f"{model}/{part}" for model in models for part in parts}
    expected |= {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    expected |= {"scheduler/scheduler_config.json", "model_index.json", "export.json", "parity.json"}
    assert set(names) == expected
    inputs = Model(out / "unet", "cpu").inputs
    assert inputs == {"sample": "float32", "timestep": "float32", "encoder_hidden_states": "float32"}
    graph = onnx.load(out / "unet" / "model.onnx", load_external_data=False).graph
    assert len(graph.input[1].type.tensor_type.shape.dim) == 0  # a scalar timestep
    onnx.checker.check_model(str(out / "unet" / "model.onnx"))


@pytest.mark.slow
def test_no_file_says_where_it_was_made(exported: Exported, shallow_checkpoint: Path) -> None:
    out, _ = exported
    source = exporters.onnx_graphs.__file__.rpartition("/")[0].encode()
    for path in (path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert str(shallow_checkpoint).encode() not in data
        assert source not in data
        assert b"site-packages" not in data
        assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.slow
def test_prompt_and_seed_give_the_checkpoints_own_pictures(
    exported: Exported, shallow_checkpoint: Path
) -> None:
    out, _ = exported
    draws, sampling = [DRAW, Draw("a moon", 8)], Sampling(3.0, 3)
    found = OnnxSampler(out, "cpu").images(draws, sampling)
    expected = Sampler(Checkpoint.open(shallow_checkpoint)).images(draws, sampling, batch=1)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert not np.array_equal(found[0], found[1])


@pytest.mark.slow
def test_generate_draws_from_the_folder_and_never_imports_torch(exported: Exported, tmp_path: Path) -> None:
    out, png = exported[0], tmp_path / "a.png"
    code = (
        "import sys\nfrom excise.cli import run\n"
        f"code = run(['generate', {str(out)!r}, 'a star', '--steps', '1', '-o', {str(png)!r}])\n"
        "print(code, [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert Image.open(tmp_path / "a.png").size == (16, 16)


@pytest.mark.slow
def test_a_prompt_over_the_window_is_refused(exported: Exported) -> None:
    out, _ = exported
    with pytest.raises(InputError, match="this model reads 16"):
        OnnxSampler(out, "cpu").images([Draw(" ".join(["star"] * 20), 0)], Sampling(1.0, 1))


@pytest.mark.slow
def test_an_sdxl_u_net_and_its_second_text_encoder_match_torch_in_fp16(
    shallow_checkpoint_sdxl: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(shallow_checkpoint_sdxl)
    wanted = [graph for graph in graphs(checkpoint) if graph.folder in ("text_encoder_2", "unet")]
    (tmp_path / "out").mkdir()
    for graph in wanted:
        parity = exporters.onnx_folder.export_model(graph, checkpoint, tmp_path / "out", "fp16")
        assert parity.passed
        assert parity.precision == "fp16"
        assert 1e-6 < parity.max_abs < 2e-2  # half precision, and really used
    inputs = Model(tmp_path / "out" / "unet", "cpu").inputs
    assert inputs["text_embeds"] == inputs["time_ids"] == inputs["sample"] == "float16"
    outputs = Model(tmp_path / "out" / "text_encoder_2", "cpu").outputs
    assert outputs == ("text_embeds", "last_hidden_state", "hidden_states.0", "hidden_states.1")


def test_an_export_that_differs_from_torch_is_refused_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_encoder_only: None
) -> None:
    monkeypatch.setattr("exporters.onnx_parity.LIMITS", {"fp32": 0.0})
    with pytest.raises(GateFailed, match="text_encoder differs from torch by"):
        export_onnx(Checkpoint.open(tiny_checkpoint), tmp_path / "out", draw=None)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.slow
def test_the_same_module_gives_the_same_bytes(
    exported: Exported, shallow_checkpoint: Path, tmp_path: Path
) -> None:
    graph = graphs(Checkpoint.open(shallow_checkpoint))[0]
    assert graph.folder == "text_encoder"
    write_graph(graph, graph.load(), tmp_path, "fp32")
    for name in ("model.onnx", "model.onnx_data"):
        assert (tmp_path / name).read_bytes() == (exported[0] / graph.folder / name).read_bytes()


def test_a_text_encoder_that_masks_padding_is_refused_before_any_work(
    tiny_checkpoint: Path, copy_of: Copy, tmp_path: Path
) -> None:
    folder = copy_of(tiny_checkpoint)
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_attention_mask": True}))
    with pytest.raises(InputError, match="hides padding"):
        export_onnx(Checkpoint.open(folder), tmp_path / "out")


def test_devices_are_those_of_onnx_runtime() -> None:
    assert providers_for("cpu") == ["CPUExecutionProvider"]
    assert providers_for("auto")[-1] == "CPUExecutionProvider"
    with pytest.raises(InputError, match="'mps'"):
        providers_for("mps")


def test_a_checkpoint_is_no_onnx_folder_and_a_damaged_graph_is_bad_input(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert not is_onnx_folder(tiny_checkpoint)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot be loaded"):
        Model(tmp_path, "cpu")
