"""What may be asked of a run: frozen sections, the YAML that fills them, errors that name file and line."""
