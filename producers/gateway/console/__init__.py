"""The operators' console: a page without a build step, and the data routes behind it."""
