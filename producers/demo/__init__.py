"""The demonstration: a producer that drives the whole loop once and reports what it measured."""
