"""An OpenAI-compatible HTTP server over the engine that decodes (`lowmem.generate.engine`)."""
