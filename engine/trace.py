"""Keys H and value gradients ∇G at the edited modules, streamed in chunks of facts.

It knows nothing of hypernetworks or solves.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.errors import EditingError, NonFiniteError
from engine.forward import answer_logits
from engine.model import EditableModel, EditModule
from engine.prompts import SCOPES, EncodedPrompt, TokenBatch, batches, row_owners


@dataclass(frozen=True)
class Traced:
    """One chunk. Rows are token positions, in the same order for every module l = 1…L (shallow to deep).

    All are on the model's first device, where the editor works.

    keys[l] (T, D_h) float32, the module's input; gradients[l] (T, D_g) float32, the gradient of the summed
    answer cross-entropy with respect to its output; owner (T,) int64, each row's index in the encoded list;
    loss: the summed cross-entropy in nats; tokens: real tokens run.
    """

    keys: list[Tensor]
    gradients: list[Tensor]
    owner: Tensor
    loss: float
    tokens: int


def trace(
    model: EditableModel,
    modules: Sequence[EditModule],
    encoded: Sequence[EncodedPrompt],
    scope: str,
    members: Sequence[int] | None = None,
    trunk: Callable[[TokenBatch], Tensor] | None = None,
) -> Iterator[Traced]:
    """Run the encoded facts once, forward and backward, and yield each chunk's keys and value gradients.

    `scope`: which positions become rows, one of SCOPES.
    `members` takes only these of `encoded`; `trunk` hands over the hidden states (B, S, D) that enter the first
    edited layer, where they are kept from an earlier pass.
    No weight gradient is computed, and nothing below the first edited module is differentiated.
    Raises NonFiniteError when the cross-entropy is not finite.
    """
    if scope not in SCOPES:
        raise EditingError(f"Unknown scope {scope!r}: choose {', '.join(SCOPES)}.")
    for batch in batches(encoded, model.chunk_tokens(modules[0].layer), model.device, members):
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        hooks = [
            model.lm.get_submodule(module.name).register_forward_hook(_recorder(module.name, inputs, outputs))
            for module in modules
        ]
        try:
            with torch.enable_grad():
                logits = answer_logits(model, batch, modules[0].layer, trunk and trunk(batch))
                loss = cross_entropy(logits, batch.labels.to(logits.device), reduction="sum")
                if not torch.isfinite(loss):
                    raise NonFiniteError(
                        f"The answer cross-entropy is {loss.item()}: the model overflows in {model.dtype}. "
                        "Load it with --dtype float32. Nothing was edited."
                    )
                gradients = torch.autograd.grad(loss, [outputs[module.name] for module in modules])
        finally:
            for hook in hooks:
                hook.remove()
        width = batch.ids.shape[1]
        rows = torch.tensor(
            [line * width + at for line, index in enumerate(batch.members) for at in encoded[index].rows(scope)]
        )

        def pick(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().flatten(0, -2)
            return tensor.index_select(0, rows.to(tensor.device)).float().to(model.device)

        yield Traced(
            [pick(inputs[module.name]) for module in modules],
            [pick(gradient) for gradient in gradients],
            row_owners(encoded, batch.members, scope),
            loss.item(),
            sum(batch.lengths),
        )


def says_all(
    model: EditableModel, layer: int, encoded: Sequence[EncodedPrompt], trunk: Callable[[TokenBatch], Tensor]
) -> bool:
    """Whether the model as it is says every answer: each token is the likeliest, teacher-forced (exact ES).

    `trunk` hands over what enters `layer`. It ends at the first chunk that misses one.
    """
    for batch in batches(encoded, model.placement.tokens_per_chunk, model.device):
        with torch.no_grad():
            logits = answer_logits(model, batch, layer, trunk(batch))
        if not torch.equal(logits.argmax(1), batch.labels.to(logits.device)):
            return False
    return True


def _recorder(name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor]):
    def record(_module, args, output: Tensor) -> Tensor:
        inputs[name] = args[0]
        if not output.requires_grad:
            output = output.detach().requires_grad_()  # backward ends at the first edited module
        outputs[name] = output
        return output.clone()  # Falcon adds to it in place

    return record
