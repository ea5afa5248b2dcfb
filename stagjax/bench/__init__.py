"""What a compiled program costs: its collectives, its cycles, its latency."""
