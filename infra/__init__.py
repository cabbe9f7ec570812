"""The ground that the services share, and how they are deployed."""
