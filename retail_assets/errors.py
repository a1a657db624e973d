"""The errors raised on purpose: each says what happened, where, and what to do."""

from retail_assets.secrets import mask


class RetailAssetsError(Exception):
    """Work that failed for a reason that its message explains; the command exits with 1.

    Its text tells no secret, wherever it is shown or stored.
    """

    def __str__(self) -> str:
        return mask(super().__str__())


class UsageError(RetailAssetsError):
    """A wrong setting or argument; the command exits with 2."""


class AuditError(RetailAssetsError):
    """Staged rows that must not be published; the published ones stay as they were."""
