"""Errors of the platform: each says what happened, where, and what to do."""

from retail_assets.secrets import mask


class RetailAssetsError(Exception):
    """Work that failed for a reason that its message explains; the command exits with 1.

    Each argument is a line of the message. Secrets are masked wherever it is shown or stored.
    """

    @property
    def lines(self) -> list[str]:
        """The lines of the message; a newline within one belongs to a name, such as a path."""
        return [mask(str(line)) for line in self.args]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class UsageError(RetailAssetsError):
    """A wrong setting or argument; the command exits with 2."""


class AuditError(RetailAssetsError):
    """Staged rows must not be published; the published ones stay as they were."""
