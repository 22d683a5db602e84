"""Pictures from an exported ONNX folder with ONNX Runtime and numpy alone: torch is never imported.

The loop of the stock pipelines (text, guided DDIM, decoder), and torch's own noise for a seed: the same
prompt and seed give the picture that the checkpoint gives, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.json_file import read_object
from compiler.onnx_runtime import onnxruntime
from editspec.errors import InputError
from exporters.clip_tokens import ClipTokens
from exporters.ddim import Ddim
from exporters.torch_noise import standard_normal

if TYPE_CHECKING:
    import numpy as np

    from compiler.generate import Draw, Images, Sampling
    from compiler.progress import Progress

    Array = np.ndarray[Any, np.dtype[np.float32]]

MODEL = "model.onnx"
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_NUMBERS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


def is_onnx_folder(folder: Path) -> bool:
    """Whether `folder` holds an exported pipeline."""
    return (folder / "unet" / MODEL).is_file()


def providers_for(device: str) -> list[str]:
    """ONNX Runtime's execution providers for "auto", "cuda" or "cpu", best first. `InputError` for others."""
    available = onnxruntime().get_available_providers()
    if device not in ("auto", *PROVIDERS):
        raise InputError("--device", f"ONNX Runtime has no '{device}' here", "choose one of auto, cuda, cpu")
    if device == "cuda" and PROVIDERS["cuda"] not in available:
        remedy = "pip uninstall onnxruntime, then pip install 'excise[onnx-gpu]'; or leave --device out"
        raise InputError("--device", "this ONNX Runtime was built without CUDA", remedy)
    wanted = ("cpu",) if device == "cpu" else ("cuda", "cpu")
    return [PROVIDERS[kind] for kind in wanted if PROVIDERS[kind] in available]


class Model:
    """One graph, opened; called with named arrays, which it takes in whatever number format it was given."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.use_deterministic_compute = True
        providers = providers_for(device)
        path = folder / MODEL
        # its errors share no base class but Exception, and each names the fault of the file
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            raise InputError(
                str(path), f"cannot be loaded: {error}", "export the checkpoint again"
            ) from error
        if device == "cuda" and self._session.get_providers()[0] != PROVIDERS["cuda"]:
            raise InputError("--device", "ONNX Runtime could not start CUDA", "check the driver and cuDNN")
        self.inputs = {one.name: _NUMBERS.get(one.type, "float32") for one in self._session.get_inputs()}
        self.outputs = tuple(one.name for one in self._session.get_outputs())

    def __call__(self, **values: Any) -> dict[str, Array]:
        """Outputs by name, floating ones in fp32. Raises `InputError` where an input is missing."""
        import numpy as np

        if missing := sorted(self.inputs.keys() - values.keys()):
            raise InputError(MODEL, f"asks for {missing[0]}, which no pipeline gives", "export it again")
        feed = {name: np.asarray(values[name], kind) for name, kind in self.inputs.items()}
        found = self._session.run(None, feed)
        return {
            name: value.astype(np.float32) if value.dtype == np.float16 else value
            for name, value in zip(self.outputs, found, strict=True)
        }


@dataclass(frozen=True)
class Text:
    """What the U-Net reads of n prompts: hidden (n, window, width); SDXL also pooled (n, d)."""

    hidden: Array
    pooled: Array | None = None

    def zeros(self) -> Text:
        """Zeros of the same shapes: SDXL's unconditional branch."""
        return Text(self.hidden * 0, None if self.pooled is None else self.pooled * 0)

    def join(self, other: Text) -> Text:
        """The rows of this, then those of `other`."""
        import numpy as np

        hidden = np.concatenate([self.hidden, other.hidden])
        if self.pooled is None or other.pooled is None:
            return Text(hidden)
        return Text(hidden, np.concatenate([self.pooled, other.pooled]))


class OnnxSampler:
    """Draws with an exported folder; each graph is opened when it is first needed."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.folder = folder
        self.device = device
        providers_for(device)
        self.index = read_object(folder / "model_index.json")
        self._vae_config = read_object(folder / "vae_decoder" / "config.json")
        self._unet_config = read_object(folder / "unet" / "config.json")
        self._scheduler_config = read_object(folder / "scheduler" / "scheduler_config.json")
        suffixes = [suffix for suffix in ("", "_2") if (folder / f"text_encoder{suffix}" / MODEL).is_file()]
        self._suffixes = tuple(suffixes)

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent at the native size."""
        size = self._unet_config.get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        return int(self._unet_config["in_channels"]), int(height), int(width)

    def images(
        self, draws: Sequence[Draw], sampling: Sampling, *, progress: Progress | None = None
    ) -> Images:
        """uint8 (n, height, width, 3), drawn one by one. `InputError` for a prompt over the window."""
        import numpy as np

        from compiler.progress import Silent

        if not draws:
            raise ValueError("there is nothing to draw")
        for tokens in self._tokens:
            tokens.ids([draw.prompt for draw in draws])  # refuse before the first picture
        pictures = []
        with (progress or Silent()).task("generate", total=len(draws)) as task:
            for draw in draws:
                pictures.append(self._pixels(self._latents(draw, sampling)))
                task.advance(1)
        return np.concatenate(pictures)

    def _latents(self, draw: Draw, sampling: Sampling) -> Array:
        """Final latents (1, c, h, w) of one picture."""
        import numpy as np

        schedule = Ddim.from_config(self._scheduler_config, sampling.steps)
        latents = standard_normal((1, *self.latent_shape), draw.seed)
        guided = sampling.guidance_scale > 1
        text = self._conditioning(draw.prompt, guided)
        rows = len(text.hidden)
        values: dict[str, Any] = {"encoder_hidden_states": text.hidden}
        if text.pooled is not None:
            values |= {"text_embeds": text.pooled, "time_ids": np.repeat(self._time_ids(), rows, axis=0)}
        for timestep in schedule.timesteps:
            sample = np.repeat(latents, rows, axis=0)
            predicted = self._unet(sample=sample, timestep=np.float32(timestep), **values)["out_sample"]
            if guided:
                uncond, cond = predicted[:1], predicted[1:]
                predicted = uncond + np.float32(sampling.guidance_scale) * (cond - uncond)
            latents = schedule.step(predicted, timestep, latents)
        return latents

    def _conditioning(self, prompt: str, guided: bool) -> Text:
        text = self._encode(prompt)
        if not guided:
            return text
        zero = text.pooled is not None and bool(self.index.get("force_zeros_for_empty_prompt", True))
        return (text.zeros() if zero else self._encode("")).join(text)

    def _encode(self, prompt: str) -> Text:
        """One prompt: the last state of a single encoder, of two each the last but one side by side."""
        import numpy as np

        found = [
            model(input_ids=tokens.ids([prompt]))
            for model, tokens in zip(self._encoders, self._tokens, strict=True)
        ]
        if len(found) == 1:
            return Text(found[0]["last_hidden_state"])
        hidden = np.concatenate([one[self._penultimate(one)] for one in found], axis=-1)
        return Text(hidden, found[-1]["text_embeds"])

    def _penultimate(self, outputs: Mapping[str, Array]) -> str:
        """hidden_states.0 is the embedding, and the last layer's is not among them but the final state."""
        layers = [int(name.rpartition(".")[2]) for name in outputs if name.startswith("hidden_states.")]
        if not layers:
            raise InputError(str(self.folder), "has text encoders without hidden states", "export it again")
        return f"hidden_states.{max(layers)}"

    def _pixels(self, latents: Array) -> Images:
        """Latents (1, c, h, w) to uint8 (1, height, width, 3)."""
        import numpy as np

        scale = np.float32(self._vae_config.get("scaling_factor", 0.18215))
        mean, deviation = self._vae_config.get("latents_mean"), self._vae_config.get("latents_std")
        if mean is not None and deviation is not None and len(self._suffixes) == 2:
            shape = (1, -1, 1, 1)
            latents = latents * np.asarray(deviation, np.float32).reshape(shape) / scale
            latents = latents + np.asarray(mean, np.float32).reshape(shape)
        else:
            latents = latents / scale
        pixels = self._decoder(latent_sample=latents)["sample"]
        if not np.isfinite(pixels).all():
            raise InputError(str(self.folder), "draws pictures that are not finite numbers", "use fp32")
        bounded = np.clip(pixels / 2 + np.float32(0.5), 0, 1).transpose(0, 2, 3, 1)
        images: Images = (bounded * 255).round().astype(np.uint8, order="C")
        return images

    def _time_ids(self) -> Array:
        """SDXL's micro-conditioning: original size, no crop, target size, all at native resolution."""
        import numpy as np

        _, height, width = self.latent_shape
        factor = 2 ** (len(self._vae_config["block_out_channels"]) - 1)
        size = [height * factor, width * factor]
        return np.asarray([[*size, 0, 0, *size]], np.float32)

    @cached_property
    def _tokens(self) -> tuple[ClipTokens, ...]:
        return tuple(ClipTokens.open(self.folder / f"tokenizer{suffix}") for suffix in self._suffixes)

    @cached_property
    def _encoders(self) -> tuple[Model, ...]:
        return tuple(Model(self.folder / f"text_encoder{suffix}", self.device) for suffix in self._suffixes)

    @cached_property
    def _unet(self) -> Model:
        return Model(self.folder / "unet", self.device)

    @cached_property
    def _decoder(self) -> Model:
        return Model(self.folder / "vae_decoder", self.device)
