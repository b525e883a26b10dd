"""The wire to NATS: the connection, publishes and reads of JetStream, its messages, and the bucket they are in."""
