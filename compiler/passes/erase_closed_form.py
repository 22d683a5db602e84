"""Erase in closed form (UCE, Gandikota et al. 2024): one least-squares solve moves all concepts to anchors.

Reads the text encoder and the cross-attention keys and values only; no U-Net is built, nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.interference import beside
from compiler.mining import Mining, edited_words, mining_of, neighbours_kept
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from editspec import Erase

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.safetensors_file import TensorEntry
    from editspec import Edit, EditSpec


class EraseClosedForm(EditPass):
    """All closed-form erasures of a spec, solved together."""

    name: ClassVar[str] = "erase/closed-form"
    version: ClassVar[int] = 6
    order: ClassVar[int] = 90
    merges: ClassVar[bool] = True

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Erase) and edit.method == "closed-form"

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        """All closed-form edits are one solve, so they share one way of preserving."""
        first, *others = _erasures(edits)
        reasons = {
            "preserve_mode": "all closed-form edits are solved together and preserve in one way",
            "robust": "all closed-form edits are solved together, in rounds or not",
        }
        return [
            (f"{spec.pointer(edit)}/{key}", f"{_differs(edit, first, key)}; {reason}")
            for edit in others
            for key, reason in reasons.items()
            if getattr(edit, key) != getattr(first, key)
        ]

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        """What is preserved, every word that is edited (none is a neighbour), what other passes are for."""
        kept = {"preserve": spec.document.get("preserve"), "beside": beside(edits, spec)}
        return {**kept, "edited": edited_words(spec)}

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        return {edit.id: mining_of(edit, (edit.concept,), spec) for edit in _erasures(edits)}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return tuple(name for name in select(entries, "cross-attention-kv") if name.endswith(".weight"))

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        """Loading and running the text encoders, and one product for each matrix."""
        encoders = [name for name in checkpoint.components if name.startswith("text_encoder")]
        parameters = sum(checkpoint.weights(name).parameters for name in encoders)
        entries = checkpoint.weights("unet").entries
        changed = sum(entries[name].parameters for name in self.targets(edits, entries))
        width = max(entries[name].shape[1] for name in self.targets(edits, entries))
        erasures = _erasures(edits)
        names = [1 + len(edit.aliases) for edit in erasures]
        listed = len(spec.preserve.concepts) + sum(len(edit.preserve) for edit in erasures)
        listed += sum(neighbours_kept(edit, spec) for edit in erasures) + len(beside(edits, spec))
        prompts = 2 * sum(names) + listed  # alone, with anchors
        if any(edit.templates for edit in erasures):  # among other words, as compiler.erasure gathers them
            prompts += 2 * sum(max(64, 12 * count) + 21 * count for count in names) + 18 * listed + 384
        tokens_each = 16  # a short prompt and the stops that stand for its padding
        words = 400 * 4 if spec.preserve.auto else 0
        # Two CPU cores: 100 GFLOP/s on matrices as small as a short prompt's, 30 in float64.
        flops = 2.0 * parameters * (prompts * tokens_each + words)
        seconds = 1.0 + parameters / 4e8 + flops / 1e11 + 2.0 * changed * width / 3e10
        return PassCost(evals=0, seconds=seconds, memory_bytes=4 * (parameters + 2 * changed) + (400 << 20))

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        from compiler.erasure import gather
        from compiler.mining import mined
        from compiler.rece import Rounds, sum_of_squares
        from compiler.solve import preserved_basis

        erasures = _erasures(edits)
        names = self.targets(edits, context.checkpoint.weights("unet").entries)
        with context.progress.task("closed form", total=len(names) + 2) as task:
            neighbours = {id: mined(one, context) for id, one in self.mining(edits, context.spec).items()}
            words = {id: [word for word, _ in pairs] for id, pairs in neighbours.items()}
            columns = gather(context.text(), erasures, context.spec, words)
            task.advance()
            ridge = min(edit.ridge for edit in erasures)
            null_space = erasures[0].preserve_mode == "null-space"
            room = (
                preserved_basis(columns.preserved * columns.preserved_weights.sqrt()) if null_space else None
            )
            found = Rounds(columns, ridge, None if room is None else room.basis)
            if any(edit.robust for edit in erasures):
                found.harden(sum_of_squares(context.weight(name) for name in names))
            text_map = found.text_map
            task.advance()
            deltas = {}
            for name in names:
                deltas[name] = (context.weight(name).double() @ text_map.cpu()).float()
                task.advance()
        due = columns.anchors - columns.edited
        left = (text_map @ columns.edited - due).norm() / due.norm().clamp(min=1e-30)
        moved = (text_map @ columns.preserved).norm() / columns.preserved.norm()
        record = {
            "columns": columns.edited.shape[1],
            "preserved_columns": columns.preserved.shape[1],
            "padding": "exact" if columns.exact_padding else "approximate",
            "left_undone": _rounded(left),
            "preserved_moved": _rounded(moved),
            "preserved_energy": None if room is None else _rounded(room.energy),
            **({"revived": found.came_back} if found.came_back else {}),
            "neighbours": {
                id: [[word, _rounded(cosine)] for word, cosine in pairs] for id, pairs in neighbours.items()
            },
        }
        return PassResult(deltas, record)


def _erasures(edits: Sequence[Edit]) -> list[Erase]:
    return [edit for edit in edits if isinstance(edit, Erase)]


def _differs(edit: Erase, first: Erase, key: str) -> str:
    """The two values of a key, as a spec writes them."""
    values = [getattr(one, key) for one in (edit, first)]
    here, there = (f"'{value}'" if isinstance(value, str) else str(value).lower() for value in values)
    return f"is {here} here but {there} in edit '{first.id}'"


def _rounded(value: Any) -> float:
    """Four digits: what the last bits of a machine class cannot change."""
    return float(f"{float(value):.4g}")
