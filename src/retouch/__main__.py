"""`python -m retouch`: the command, for where scripts are not on the path."""

from retouch.apps.cli import main

main()
