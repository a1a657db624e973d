"""Amazon SQS, standard and FIFO queues, by boto3."""

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from retail_assets.errors import UsageError
from retail_assets.worker.sources.queues.base import Depth, Message, QueueError

MOST_AT_ONCE = 10
"""A call of Amazon SQS has no more messages."""

CONNECT_SECONDS, READ_SECONDS = 5, 15
"""How long a call may take to connect, and to answer once what it waits for is there."""

NEEDED = (
    "sqs:ReceiveMessage, sqs:DeleteMessage, sqs:ChangeMessageVisibility and sqs:GetQueueAttributes"
)

_REGION = re.compile(r"(?:^|\.)(?:sqs(?:-fips)?\.([a-z0-9-]+)|([a-z0-9-]+)\.queue)\.(?:\w+\.)?amaz")

_GONE = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "InvalidAddress"}
_REFUSED = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_BUSY = {"OverLimit", "RequestThrottled", "Throttling", "ThrottlingException", "ServiceUnavailable"}


class SqsQueue:
    """A queue of Amazon SQS, or of a server that speaks its protocol; see `Queue`."""

    most_at_once = MOST_AT_ONCE

    def __init__(self, url: str) -> None:
        """Make a client; nothing is called yet.

        Raises:
            UsageError: if it is no URL of a queue, nobody says in which region it is, or a package
                is not installed.
        """
        parts = urlsplit(url)
        self.url = url
        self.name = parts.path.rstrip("/").rpartition("/")[2]
        if parts.scheme not in ("http", "https") or not parts.netloc or not self.name:
            raise UsageError(
                f"{url!r} is no URL of a queue, such as"
                " https://sqs.eu-west-2.amazonaws.com/123456789012/orders."
            )
        try:
            import botocore.session
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise UsageError(
                f"To read the queue {self.name} a package is not installed ({error}): install the"
                " extra `sqs`."
            ) from error
        named = _REGION.search(parts.netloc)
        try:
            self._client = botocore.session.get_session().create_client(
                "sqs",
                region_name=(named[1] or named[2]) if named else None,
                endpoint_url=f"{parts.scheme}://{parts.netloc}",
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    # The worker tries again by itself, and says so.
                    retries={"mode": "standard", "total_max_attempts": 2},
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise UsageError(
                f"The queue {url} cannot be used ({error}): set AWS_DEFAULT_REGION to its region."
            ) from error

    def check(self) -> None:
        """Look whether the queue is there and may be used."""
        self.depth()

    def receive(self, *, wait_seconds: float, hold_seconds: int) -> Sequence[Message]:
        """Wait for messages; see `Queue`."""
        with self._sentences():
            answer = self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=MOST_AT_ONCE,
                WaitTimeSeconds=round(wait_seconds),
                VisibilityTimeout=hold_seconds,
                MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
            )
        return [_message(found) for found in answer.get("Messages", ())]

    def extend(self, messages: Sequence[Message], hold_seconds: int) -> Collection[str]:
        """Hold messages back for longer; see `Queue`."""
        with self._sentences():
            answer = self._client.change_message_visibility_batch(
                QueueUrl=self.url,
                Entries=[
                    entry | {"VisibilityTimeout": hold_seconds} for entry in _entries(messages)
                ],
            )
        # What the sender is not to blame for may work the next time.
        return {
            messages[int(failed["Id"])].receipt
            for failed in answer.get("Failed", ())
            if failed.get("SenderFault")
        }

    def delete(self, messages: Sequence[Message]) -> Collection[str]:
        """Delete messages; see `Queue`."""
        with self._sentences():
            answer = self._client.delete_message_batch(
                QueueUrl=self.url, Entries=_entries(messages)
            )
        return {messages[int(done["Id"])].receipt for done in answer.get("Successful", ())}

    def depth(self) -> Depth:
        """Count what waits, delayed messages included."""
        names = (
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesDelayed",
            "ApproximateNumberOfMessagesNotVisible",
        )
        with self._sentences():
            answer = self._client.get_queue_attributes(
                QueueUrl=self.url, AttributeNames=list(names)
            )
        waiting, delayed, held = (int(answer["Attributes"].get(name, 0)) for name in names)
        return Depth(waiting + delayed, held)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn the errors of the client into sentences."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except ClientError as error:
            raise QueueError(self._refusal(error)) from error
        except NoCredentialsError as error:
            raise QueueError(
                f"The queue {self.name} cannot be read, for lack of credentials: set"
                " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the"
                " machine."
            ) from error
        except BotoCoreError as error:
            raise QueueError(
                f"The queue {self.name} does not answer at {urlsplit(self.url).netloc}: {error}"
            ) from error

    def _refusal(self, error: Any) -> str:
        found = error.response.get("Error", {})
        code, text = str(found.get("Code", "")), str(found.get("Message", "")) or str(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _GONE or code.endswith((".NonExistentQueue", "QueueDoesNotExist")):
            return (
                f"There is no queue {self.url}: it was deleted, or is in another account or"
                " region; correct the URL."
            )
        if code in _REFUSED or code.startswith("KMS."):
            return (
                f"The queue {self.name} may not be read with these credentials ({code}: {text}):"
                f" they need {NEEDED}, and kms:Decrypt if it is encrypted."
            )
        if code in _BUSY or "Throttl" in code or status >= 500:  # noqa: PLR2004  # the server's
            return f"The queue {self.name} is busy ({code}): it is read again in a moment."
        return f"The queue {self.name} cannot be read ({code}): {text}"


def _message(found: Any) -> Message:
    attributes = found.get("Attributes", {})
    return Message(
        message_id=found["MessageId"],
        receipt=found["ReceiptHandle"],
        body=found["Body"].encode("utf-8", "backslashreplace"),
        sent_us=int(attributes.get("SentTimestamp") or time.time() * 1000) * 1000,
        deliveries=int(attributes.get("ApproximateReceiveCount", 1)),
    )


def _entries(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"Id": str(number), "ReceiptHandle": message.receipt}
        for number, message in enumerate(messages)
    ]
