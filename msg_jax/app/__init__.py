"""The web app: a page and an HTTP API in front of one loaded system. Needs the extra `app`."""
