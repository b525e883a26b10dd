"""Streams on a NATS JetStream cluster: any number of servers over the same streams."""
