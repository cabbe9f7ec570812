"""Backup and restore of the topics that a rebuilt platform starts from."""
