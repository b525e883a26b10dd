"""The wire to NATS: the connection, JetStream publishes and reads, their messages, and checks of the bucket."""
