"""Who calls, and what they may do: API keys, and tokens of an issuer."""
