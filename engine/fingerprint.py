"""The fingerprint of a model's weights: what ties a hypernetwork or a delta to the model it was made for.

Knows nothing of files: the same tensors give the same fingerprint however they were saved.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor, uint8


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's weights, as 64 hexadecimal digits.

    state_dict: name → tensor of any shape, dtype and device. Names, dtypes, shapes and bytes all count;
    the order of the names does not. A tensor that several names share counts once, under the last of its
    names in sorted order: `model.embed_tokens.weight`, not the `lm_head.weight` tied to it. So the model
    and the file it was saved to, which holds the tensor once, have one fingerprint.

        sha256( for each name in sorted order: name, dtype, shape, sha256(bytes of the tensor) )

    The same weights in another dtype have another fingerprint. Half a second for 540 MB on two cores.
    """
    names = {}
    for name in sorted(state_dict):
        names[_storage_key(name, state_dict[name])] = name  # a later name of the same tensor wins
    names = sorted(names.values())
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter while it hashes
        digests = pool.map(lambda name: _bytes_sha256(state_dict[name]), names)
        whole = hashlib.sha256()
        for name, digest in zip(names, digests):
            tensor = state_dict[name]
            whole.update(f"{name} {tensor.dtype} {list(tensor.shape)} {digest}\n".encode())
    return whole.hexdigest()


def _storage_key(name: str, tensor: Tensor) -> tuple:
    """Equal for two names of one tensor. An empty tensor has no address: it stands for itself."""
    if tensor.numel() == 0:
        return (name,)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _bytes_sha256(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(uint8).numpy()).hexdigest()  # as bytes: numpy has no bfloat16
