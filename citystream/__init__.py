"""The composition root: settings, command line, local stack."""
