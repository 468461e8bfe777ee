"""A constructor is a schema: option types, checking a configuration against them, and building what it names."""
