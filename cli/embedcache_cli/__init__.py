"""The command line. Typer at import, everything else inside commands: ``embedcache --help`` answers at once."""
