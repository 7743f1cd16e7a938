"""What can go wrong with a store."""

from __future__ import annotations

from substyle.kernels.errors import SubstyleError


class StoreError(SubstyleError):
    """A store cannot be opened or written, or what is asked of it does not agree with what it holds."""


class DifferentError(StoreError):
    """What is to be stored was made from other inputs, or in another way, than what the store holds."""


class LockedError(StoreError):
    """Another run holds the store."""


class OverflowError16(SubstyleError):
    """An embedding does not fit the store's type."""
