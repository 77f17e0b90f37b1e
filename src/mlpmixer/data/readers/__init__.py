"""One file per format. A reader returns what its files hold; `data.datasets` cuts splits and compares classes."""
