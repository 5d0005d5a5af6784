"""The graph, and the user's own class, without the channels and branches that go."""
