"""Deployment: starting a server, and proving from outside that it answers and refuses as it must."""
