"""Option types, validation of configurations against constructors, and instantiation of their sections."""
