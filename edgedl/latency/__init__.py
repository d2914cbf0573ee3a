"""Latency where nobody has the board: predicted from published figures, with an interval or a refusal."""
