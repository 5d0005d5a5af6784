"""Which channels are one: every index of every axis carries labels, and operators say how they go on."""
