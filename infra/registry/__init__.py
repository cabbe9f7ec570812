"""Model versions, rollouts and dynamic settings on their topics, and the artifact store."""
