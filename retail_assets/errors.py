"""The errors raised on purpose: each says what happened, where, and what to do."""


class RetailAssetsError(Exception):
    """Work that failed for a reason that its message explains; the command exits with 1."""


class UsageError(RetailAssetsError):
    """A wrong setting or argument; the command exits with 2."""


class AuditError(RetailAssetsError):
    """Staged rows that must not be published; the published ones stay as they were."""
