"""The evaluator behind "image-classification": any transformers image classifier, its labels as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.evaluators.evaluator import BATCH, Evaluator, grouped_softmax, transformers_files
from compiler.json_file import read_object

if TYPE_CHECKING:
    import torch

    from compiler.evaluators.evaluator import Images, Scores


class ImageClassification(Evaluator):
    """A folder with config.json (id2label), model.safetensors and preprocessor_config.json."""

    adapter: ClassVar[str] = "image-classification"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        self.files()
        names = read_object(self.path / "config.json").get("id2label")
        if not isinstance(names, dict) or sorted(names) != sorted(str(i) for i in range(len(names))):
            raise self.refuse("config.json has no id2label from 0 on", "name its classes there")
        labels = tuple(str(names[str(i)]) for i in range(len(names)))
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise self.refuse("needs at least two labels, all different", "name its classes in config.json")
        return labels

    def files(self) -> Sequence[Path]:
        return transformers_files(self)

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """The classifier, in fp32 and evaluation mode, and its image processor (PIL: the same everywhere)."""
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        from compiler.generate import quiet

        with quiet(), self.loading():
            options = {"local_files_only": True, "backend": "pil"}
            processor = AutoImageProcessor.from_pretrained(self.path, **options)
            model = AutoModelForImageClassification.from_pretrained(
                self.path, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        return model.eval().to(self._device or torch.device("cpu")), processor

    def _batches(self, images: Images) -> Iterator[torch.Tensor]:
        model, processor = self._model
        for start in range(0, len(images), BATCH):
            inputs = processor(images=list(images[start : start + BATCH]), return_tensors="pt")
            yield inputs["pixel_values"].to(model.device)

    def score(self, images: Images) -> Scores:
        import torch

        with torch.inference_mode():
            logits = [self._model[0](pixels).logits.float().cpu() for pixels in self._batches(images)]
        return grouped_softmax(torch.cat(logits).numpy(), self.labels)

    def features(self, images: Images) -> Scores:
        import torch

        found = []
        with torch.inference_mode():
            for pixels in self._batches(images):
                last = self._model[0](pixels, output_hidden_states=True).hidden_states[-1].float()
                # (n, channels, height, width) of a CNN or (n, tokens, width) of a transformer
                found.append(last.mean(dim=(2, 3) if last.ndim == 4 else 1).cpu())
        features: Scores = torch.cat(found).numpy()
        return features
