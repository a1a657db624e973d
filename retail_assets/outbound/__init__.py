"""What leaves the platform: messages to Kafka, and notifications to people."""
