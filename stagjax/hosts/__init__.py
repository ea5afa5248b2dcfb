"""Processes of one run on several hosts: how they meet, watch each other, agree and end; no JAX."""
