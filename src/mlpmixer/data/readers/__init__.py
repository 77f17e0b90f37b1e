"""One file per format: each reader returns what its files hold; `mlpmixer.data.datasets` cuts splits and checks classes."""
