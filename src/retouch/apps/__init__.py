"""The doors: command line, web page, batches. What a user touches; nothing that decides a picture."""
