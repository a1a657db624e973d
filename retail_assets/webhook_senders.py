"""The senders of the webhook, as a setting has them; the webhook checks their requests."""

import base64
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from typing_extensions import Self

SIGNATURE_HEADERS = {
    "shopify": "X-Shopify-Hmac-Sha256",
    "woocommerce": "X-WC-Webhook-Signature",
    "stripe": "Stripe-Signature",
    "standard": "webhook-signature",
}
"""The header with the signature of each scheme; a scheme `hmac` names its own."""

STANDARD_SECRET = "whsec_"  # noqa: S105  # the beginning of all such secrets
"""What a secret of the Standard Webhooks begins with; its bytes in base64 follow."""

SENDER_NAME = re.compile(r"[a-z0-9_-]{1,40}")


class WebhookSender(BaseModel):
    """A sender to the webhook: a token, or a secret that its requests are signed with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: SecretStr | None = None
    secret: SecretStr | None = None
    old_secret: SecretStr | None = None
    scheme: Literal["shopify", "woocommerce", "stripe", "standard", "hmac"] | None = None
    header: str | None = None
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""
    tolerance_seconds: float = Field(default=300, gt=0)

    @property
    def signature_header(self) -> str:
        """The header that has the signature."""
        return self.header or SIGNATURE_HEADERS[str(self.scheme)]

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys that a signature may be made with.

        Raises:
            ValueError: if a secret is no base64 where it should be.
        """
        texts = [
            each.get_secret_value() for each in (self.secret, self.old_secret) if each is not None
        ]
        if self.scheme == "standard":
            bare = [text.removeprefix(STANDARD_SECRET) for text in texts]
            return tuple(base64.b64decode(text, validate=True) for text in bare)
        return tuple(text.encode() for text in texts)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.token is None) == (self.secret is None):
            raise ValueError("a sender has either a token or a secret")
        if self.secret is None:
            return self
        if self.scheme is None or (self.scheme == "hmac") != (self.header is not None):
            raise ValueError(
                "a secret needs a scheme: shopify, woocommerce, stripe, standard, or hmac with the"
                " header that has the signature"
            )
        try:
            usable = all(self.keys)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("a secret is blank, or is no base64 after whsec_")
        return self
