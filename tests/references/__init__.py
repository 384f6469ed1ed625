"""Independent references that the tests compare the engine with."""
