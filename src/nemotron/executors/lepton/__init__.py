"""DGX Cloud Lepton by its REST API."""
