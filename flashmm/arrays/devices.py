"""Devices: where PyTorch can compute a fit, and what to say where it cannot."""

from __future__ import annotations

from typing import Any

from flashmm.arrays.namespaces import Array
from flashmm.exceptions import InputError, listing

__all__ = ["example_on"]


def example_on(device: Any) -> Array:
    """A float64 array of PyTorch on a device, to make others like it.

    Parameters
    ----------
    device
        A name such as ``"cuda"``, ``"cuda:1"`` or ``"cpu"``, or a ``torch.device``.

    Raises
    ------
    InputError
        If PyTorch is not installed, or the device is unknown, absent or without float64.
    """
    try:
        import torch  # noqa: PLC0415 (an extra)
    except ImportError:
        raise InputError(
            f"device={device!r} needs PyTorch, which is not installed: "
            "pip install 'multilmm[torch]', or leave `device` out."
        ) from None
    if not isinstance(device, (str, torch.device)):
        raise InputError(
            f"`device` must be a name such as 'cuda' or a torch.device, not {device!r}."
        )
    try:
        example = torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"PyTorch has no device {str(device)!r} here; it has {listing(_present(torch), 10)}."
        ) from None
    try:
        return example.to(torch.float64)
    except (RuntimeError, TypeError):
        raise InputError(
            f"The device {str(device)!r} has no float64 numbers, which a fit needs. Use one of "
            f"{listing([name for name in _present(torch) if name != 'mps'], 10)}."
        ) from None


def _present(torch: Any) -> list[str]:
    """Names of the devices that PyTorch can use here."""
    cuda = ["cuda", *(f"cuda:{i}" for i in range(1, torch.cuda.device_count()))]
    return [
        "cpu",
        *(cuda if torch.cuda.is_available() else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
