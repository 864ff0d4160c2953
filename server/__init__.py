"""The command line and the OpenAI-compatible HTTP server: thin over the engine."""
