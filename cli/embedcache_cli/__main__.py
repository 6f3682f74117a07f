"""``python -m embedcache_cli`` is ``embedcache``."""

from embedcache_cli.app import main

main()
