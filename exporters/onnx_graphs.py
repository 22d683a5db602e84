"""One model of a checkpoint -> one ONNX graph, in the names and shapes that ONNX Runtime pipelines feed.

The contract is the one of optimum's `ORTStableDiffusionPipeline` and of Olive: int64 ids, a scalar fp32
timestep, moments (not samples) from the VAE's encoder. Batch and size are dynamic. diffusers' own
`OnnxStableDiffusionPipeline` feeds int32 ids and a timestep of shape (1,), which no graph can serve as well;
it is deprecated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from compiler.unet import build_unet, latent_shape
from exporters.onnx_modules import Decoder, Encoder, TextEncoder, Unet, UnetXl

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint

Precision = Literal["fp32", "fp16"]

MODEL = "model.onnx"
DATA = "model.onnx_data"  # the name that optimum and transformers.js expect; torch's own is model.onnx.data
OPSET = 20
EXAMPLE_BATCH = 2  # torch.export takes 1 for a constant
#: diffusers upsamples 64 rows and more in another way, to the same numbers. Without this limit torch.export
#: finds that out by tracing everything twice. The graph has no such limit.
TRACED_BATCH = 63

Shape = tuple[int | str, ...]  # sizes, or the names of dynamic ones ("4*height" is a multiple of four)


@dataclass(frozen=True)
class Input:
    """One input of a graph. `shape` names its dynamic sizes; `bound` is one more than the largest integer."""

    name: str
    shape: Shape
    kind: Literal["float", "half", "timestep", "ids"] = "half"  # "half" follows the precision of the export
    bound: int = 0

    def dtype(self, precision: Precision) -> torch.dtype:
        """The torch type that the exported graph reads."""
        if self.kind == "ids":
            return torch.int64
        return torch.float16 if self.kind == "half" and precision == "fp16" else torch.float32


@dataclass(frozen=True)
class Graph:
    """What to export: the folder it goes to, how to load its module in fp32, and its signature.

    `sizes` holds, for each dynamic size, the smallest and the native value; `largest` those with a limit.
    """

    folder: str
    component: str
    load: Callable[[], nn.Module]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]
    largest: Mapping[str, int]
    halved: bool = True  # False: stays fp32 in an fp16 export, because it overflows there

    def precision(self, wanted: Precision) -> Precision:
        """The number format that this model gets in an export of the `wanted` one."""
        return wanted if self.halved else "fp32"


def graphs(checkpoint: Checkpoint) -> tuple[Graph, ...]:
    """The graphs of a checkpoint: text encoder(s), U-Net, VAE decoder, VAE encoder."""
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in checkpoint.components]
    return (*(_text(checkpoint, name) for name in encoders), _unet(checkpoint), *_vae(checkpoint))


def write_graph(graph: Graph, module: nn.Module, folder: Path, precision: Precision) -> None:
    """Export `module`, in eval mode and in the number format `precision`, to `folder`/model.onnx.

    The weights lie beside it in model.onnx_data, so graphs over protobuf's 2 GB limit are possible. Neither
    file names a source file or a folder of this machine, and equal modules give equal bytes.
    """
    import onnx_ir

    example = tuple(_example(one, graph.sizes, precision) for one in graph.inputs)
    dims = {name: _dim(name, graph) for name in graph.sizes}
    dynamic = tuple(
        {at: _derived(size, dims) for at, size in enumerate(one.shape) if isinstance(size, str)}
        for one in graph.inputs
    )
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            input_names=[one.name for one in graph.inputs],
            output_names=list(graph.outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # without a file name torch returns the program
    _strip(program.model)
    onnx_ir.save(program.model, folder / MODEL, external_data=DATA)
    for name in (MODEL, DATA):
        (folder / name).chmod(0o644)


def _text(checkpoint: Checkpoint, name: str) -> Graph:
    projected = name.endswith("_2")
    config = checkpoint.config(name)
    window = int(config.get("max_position_embeddings", 77))
    outputs: tuple[str, ...] = ("last_hidden_state", "pooler_output")
    if projected:
        outputs = ("text_embeds", "last_hidden_state")
    if checkpoint.family == "sdxl":  # its pipelines read the last layer but one
        outputs += tuple(f"hidden_states.{layer}" for layer in range(int(config["num_hidden_layers"])))

    def load() -> nn.Module:
        import transformers

        kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        return TextEncoder(_stock(kind, checkpoint, name), outputs).eval()

    ids = Input("input_ids", ("batch", "sequence"), "ids", bound=int(config["vocab_size"]))
    sizes = {"batch": (1, 1), "sequence": (4, window)}
    return Graph(name, name, load, (ids,), outputs, sizes, {"sequence": window})


def _unet(checkpoint: Checkpoint) -> Graph:
    config = checkpoint.config("unet")
    channels, height, width = latent_shape(config)
    step = 2 ** (len(config["block_out_channels"]) - 1)  # other sizes meet no equal ones on the way up
    texts = [
        checkpoint.config(name)
        for name in ("text_encoder", "text_encoder_2")
        if name in checkpoint.components
    ]
    window = int(texts[0].get("max_position_embeddings", 77))
    inputs = [
        Input("sample", ("batch", channels, _times(step, "height"), _times(step, "width"))),
        Input("timestep", (), "timestep"),
        Input(
            "encoder_hidden_states", ("batch", "sequence", sum(int(text["hidden_size"]) for text in texts))
        ),
    ]
    wrapper: type[nn.Module] = Unet
    if checkpoint.family == "sdxl":
        wrapper = UnetXl
        inputs += [
            Input("text_embeds", ("batch", int(texts[-1]["projection_dim"]))),
            Input("time_ids", ("batch", 6), bound=1024),
        ]
    sizes = {
        "batch": (1, 1),
        "height": (1, max(1, height // step)),
        "width": (1, max(1, width // step)),
        "sequence": (4, window),
    }
    return Graph(
        "unet",
        "unet",
        lambda: wrapper(build_unet(checkpoint)).eval(),
        tuple(inputs),
        ("out_sample",),
        sizes,
        {"batch": TRACED_BATCH},
    )


def _vae(checkpoint: Checkpoint) -> tuple[Graph, Graph]:
    import diffusers

    config = checkpoint.config("vae")
    step = 2 ** (len(config["block_out_channels"]) - 1)
    _, height, width = latent_shape(checkpoint.config("unet"))

    def load(wrapper: type[nn.Module]) -> nn.Module:
        return wrapper(_stock(diffusers.AutoencoderKL, checkpoint, "vae")).eval()

    latents = Input("latent_sample", ("batch", int(config["latent_channels"]), "height", "width"), "float")
    pixels = ("batch", int(config.get("in_channels", 3)), _times(step, "height"), _times(step, "width"))
    sizes = {"batch": (1, 1), "height": (2, height), "width": (2, width)}
    return (
        Graph(
            "vae_decoder", "vae", lambda: load(Decoder), (latents,),
            ("sample",), sizes, {"batch": TRACED_BATCH}, halved=False,
        ),
        Graph(
            "vae_encoder", "vae", lambda: load(Encoder), (Input("sample", pixels, "float"),),
            ("latent_parameters",), sizes, {}, halved=False,
        ),
    )  # fmt: skip


def _stock(kind: Any, checkpoint: Checkpoint, component: str) -> Any:
    """A component as diffusers or transformers loads it, in fp32 on the CPU."""
    from compiler.generate import quiet

    options: dict[str, Any] = {"variant": checkpoint.variant} if checkpoint.variant else {}
    with quiet():
        return kind.from_pretrained(
            checkpoint.root,
            subfolder=component,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            **options,
        )


def _times(step: int, name: str) -> str:
    return f"{step}*{name}" if step > 1 else name


def sizes_of(shape: Shape, values: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with its dynamic sizes put in: ("batch", 4, "2*height") -> (2, 4, 16)."""
    found = []
    for size in shape:
        if isinstance(size, str):
            step, _, name = size.rpartition("*")
            size = int(step or 1) * values[name]
        found.append(size)
    return tuple(found)


def _example(one: Input, sizes: Mapping[str, tuple[int, int]], precision: Precision) -> Tensor:
    values = {name: max(native, 3) for name, (_, native) in sizes.items()} | {"batch": EXAMPLE_BATCH}
    return torch.zeros(sizes_of(one.shape, values), dtype=one.dtype(precision))


def _dim(name: str, graph: Graph) -> Any:
    return torch.export.Dim(name, min=1, max=graph.largest.get(name))


def _derived(size: str, dims: Mapping[str, Any]) -> Any:
    step, _, name = size.rpartition("*")
    return int(step) * dims[name] if step else dims[name]


def _strip(model: Any) -> None:
    """Take out what torch tells of its own making: thousands of source lines with their local paths."""
    model.doc_string = None
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.doc_string = None
        graph.metadata_props.clear()
        for node in graph.all_nodes() if hasattr(graph, "all_nodes") else graph:
            node.doc_string = None
            node.metadata_props.clear()
            for value in node.outputs:
                _strip_value(value)
        for value in graph.inputs:
            _strip_value(value)
        for value in getattr(graph, "initializers", {}).values():
            _strip_value(value)


def _strip_value(value: Any) -> None:
    value.doc_string = None
    value.metadata_props.clear()
    if value.const_value is not None and hasattr(value.const_value, "metadata_props"):
        value.const_value.metadata_props.clear()
