"""One module a topic of the command line; none imports torch before its command runs."""
