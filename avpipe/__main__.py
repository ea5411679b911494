"""``python -m avpipe``."""

from avpipe.cli import main

main()
