"""One function has one relevance, however it is spelt."""
