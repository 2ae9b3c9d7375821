"""NeMo-Gym's protocol: rewards from resources servers over HTTP, and two servers of our own that speak it."""
