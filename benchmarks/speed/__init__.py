"""The price of relevance: time and memory of explanations as ratios to the plain input gradient."""
