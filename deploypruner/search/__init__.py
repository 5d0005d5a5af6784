"""The latency budget: widths chosen by predicted latency, exported, measured and corrected until it is met."""
