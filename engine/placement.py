"""Where the language model runs and in which dtype, decided in one place, with the reason.

The editor (hypernetwork, sums, solves) is float32 everywhere; this is about the language model alone.
"""

from dataclasses import dataclass

import torch

from engine.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Placement:
    """device and dtype of the language model, and why.

    `autocast`: float32 weights, bfloat16 matrix products. `tokens_per_chunk`: how many tokens, padding
    included, go through the model at once, at most; it bounds the memory of every operation.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str
    autocast: bool = False
    device_map: str | None = None
    attention: str = "eager"
    tokens_per_chunk: int = 512  # on a CPU the activations of more leave its caches, and padding grows

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.float32 if self.autocast else self.dtype


def choose_placement(device: str = "auto", dtype: str = "auto") -> Placement:
    """The placement for what was asked and what the machine has. Raises ModelError for what it has not."""
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}: choose auto, {', '.join(DTYPES)}.")
    if device == "balanced":
        if torch.cuda.device_count() == 0:
            raise ModelError("device 'balanced' spreads the model over GPUs, and none was found; choose cpu.")
        return _on_cuda(torch.device("cuda:0"), dtype, f"spread over {torch.cuda.device_count()} GPUs", "balanced")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"Unknown device {device!r}: choose auto, cpu, cuda, cuda:N, mps or balanced.") from error
    if target.type == "cuda":
        if not torch.cuda.is_available() or (target.index or 0) >= torch.cuda.device_count():
            raise ModelError(f"{device} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; choose auto or cpu.")
        return _on_cuda(target, dtype, f"{device}: {torch.cuda.get_device_name(target)}", None)
    if target.type == "mps":
        if not torch.backends.mps.is_available():
            raise ModelError("mps was asked for, but this machine has no Metal device; choose cpu.")
        chosen = DTYPES.get(dtype, torch.float32)
        return Placement(target, chosen, f"mps, {_short(chosen)}: a Metal GPU was found", tokens_per_chunk=4096)
    if target.type != "cpu":
        raise ModelError(f"Unknown device {device!r}: choose auto, cpu, cuda, cuda:N, mps or balanced.")
    return _on_cpu(dtype)


def _on_cuda(device: torch.device, dtype: str, where: str, device_map: str | None) -> Placement:
    chosen = DTYPES.get(dtype) or (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
    return Placement(
        device,
        chosen,
        f"{where}, {_short(chosen)} model, float32 editor",
        device_map=device_map,
        attention="sdpa",
        tokens_per_chunk=16384,
    )


def _on_cpu(dtype: str) -> Placement:
    cpu = torch.device("cpu")
    if dtype == "auto":
        # AVX512-BF16 alone is slower than float32 where it was measured; only AMX tiles pay.
        if torch.cpu.get_capabilities().get("amx_bf16"):
            return Placement(cpu, torch.bfloat16, "cpu, bfloat16 autocast: it has AMX matrix units", autocast=True)
        return Placement(cpu, torch.float32, "cpu, float32: no AMX matrix units, so bfloat16 would not be faster")
    chosen = DTYPES[dtype]
    return Placement(
        cpu, chosen, f"cpu, {dtype}: as asked", autocast=chosen is torch.bfloat16
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
