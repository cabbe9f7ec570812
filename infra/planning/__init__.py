"""How large a deployment must be: ``feedloom plan``. Pure but for reading its own data files.

Layer: above ``infra.settings`` and ``infra.contracts``, of which it knows the topics and the
codec, and no other part. It asks nothing of a broker or an engine: what they can do is in
``coefficients.toml``, each number with where it comes from.
"""
