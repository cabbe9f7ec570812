"""What the services agree on: events, their wire form, topics, errors and the bus Protocols.

Knows no I/O: msgspec and the standard library only.
"""
