"""Kafka: the bus on it, topics, rights and lag there, and the embedded broker."""
