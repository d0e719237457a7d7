"""What may be asked of a run: frozen pydantic sections, the YAML that fills them, and errors that name file and line."""
