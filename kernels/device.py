"""Devices by name: what a ``device`` argument may say, and whether it is there."""

from __future__ import annotations

import re

import torch

from substyle.kernels.errors import ConfigError

CPU = torch.device("cpu")
_NAME = re.compile(r"cpu|cuda(:\d+)?")


def as_device(name: str, field: str = "device") -> torch.device:
    """The device of a name: ``cpu``, ``cuda`` (the current CUDA device) or ``cuda:N``; a CUDA device with its number.

    Args:
        field: the field or argument that the name was given in, for the message.

    Raises:
        ConfigError: another name, or a device that is not there.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(field, name, f"cpu, cuda or cuda:N; there is {there()}")
    if name == "cpu":
        return CPU
    if not torch.cuda.is_available():
        raise ConfigError(field, name, f"cpu; {there()}")
    device = torch.device(name)
    number = torch.cuda.current_device() if device.index is None else device.index
    if number >= torch.cuda.device_count():
        raise ConfigError(field, name, f"a device that is there: {there()}")
    return torch.device("cuda", number)


def there() -> str:
    """The devices that torch can use, in words."""
    if torch.version.cuda is None:
        return "cpu alone (this torch is built without CUDA)"
    if not torch.cuda.is_available():
        return "cpu alone (torch sees no CUDA device)"
    cards = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *cards])
