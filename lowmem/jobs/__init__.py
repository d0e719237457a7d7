"""The verbs as functions: a config in, a report out, events on the way, nothing printed."""
