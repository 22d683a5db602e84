"""The evaluator behind "zero-shot-image-classification": CLIP choosing between the texts the spec gives it.

Here the spec's "labels" are the question itself: name to text, {"star": "a picture of a star", "none":
"something else"}. A name may carry a group; texts are weighed against those of their own group only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.evaluators.evaluator import BATCH, Evaluator, group_of, grouped_softmax, transformers_files
from compiler.json_file import read_object

if TYPE_CHECKING:
    import torch

    from compiler.evaluators.evaluator import Images, Scores


class ZeroShot(Evaluator):
    """A CLIP folder: config.json, model.safetensors, the tokenizer's files and preprocessor_config.json."""

    adapter: ClassVar[str] = "zero-shot-image-classification"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        self.files()
        kind = read_object(self.path / "config.json").get("model_type")
        if kind != "clip":
            raise self.refuse(f"is a '{kind}' model", "this adapter calls CLIP models")
        if not self.named:
            raise self.refuse("has no texts to choose between", 'give "labels": name to text')
        for group, count in Counter(group_of(name) for name in self.named).items():
            if count < 2:
                place = f"group '{group}' of \"labels\"" if group else '"labels"'
                raise self.refuse(
                    f"{place} has one text, which would win on every picture", "add what else there may be"
                )
        return tuple(self.named)

    def files(self) -> Sequence[Path]:
        return transformers_files(self)

    def label_for(self, concept: str, label: str | None = None) -> str | None:
        """As everywhere, but the spec's words are texts here, not labels."""
        return super().label_for(concept, label or concept)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"texts": dict(self.named)}

    @cached_property
    def _model(self) -> tuple[Any, Any, torch.Tensor]:
        """The model in fp32, its image processor, and the texts' embeddings (labels, width), unit length."""
        import torch
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        from compiler.generate import quiet

        with quiet(), self.loading():
            options = {"local_files_only": True, "backend": "pil"}
            processor = AutoImageProcessor.from_pretrained(self.path, **options)
            tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            model = CLIPModel.from_pretrained(
                self.path, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        model = model.train(False).to(self._device or torch.device("cpu"))
        window = model.config.text_config.max_position_embeddings
        texts = [self.named[name] for name in self.labels]
        for text in texts:
            if len(tokenizer(text).input_ids) > window:
                raise self.refuse(f"'{text}' is longer than its window of {window} tokens", "shorten it")
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            hidden = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
            embeddings = torch.nn.functional.normalize(model.text_projection(hidden.pooler_output), dim=-1)
        return model, processor, embeddings

    def features(self, images: Images) -> Scores:
        """Unit-length picture embeddings (n, width)."""
        import torch

        model, processor, _ = self._model
        found = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                inputs = processor(images=list(images[start : start + BATCH]), return_tensors="pt")
                hidden = model.vision_model(inputs["pixel_values"].to(model.device))
                projected = model.visual_projection(hidden.pooler_output)
                found.append(torch.nn.functional.normalize(projected, dim=-1).cpu())
        features: Scores = torch.cat(found).numpy()
        return features

    def score(self, images: Images) -> Scores:
        model, _, texts = self._model
        cosine = self.features(images) @ texts.cpu().numpy().T
        logits: Scores = cosine * float(model.logit_scale.detach().exp().cpu())
        return grouped_softmax(logits, self.labels)
