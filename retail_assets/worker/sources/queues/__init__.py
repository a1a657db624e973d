"""Message queues as sources: messages that are deleted once they are in the lake."""
