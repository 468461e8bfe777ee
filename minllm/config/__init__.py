"""From overrides to a configuration that can be run."""
