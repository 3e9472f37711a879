"""Lets the tests of all passes import `graph_checks`: pytest puts this folder on the path."""
