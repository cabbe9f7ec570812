"""The events of the platform, as frozen, tagged structs: a module a family of topics."""
