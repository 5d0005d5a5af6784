"""Channels that go as wholes: criteria, scores, plans, removal and its proof."""
