"""Nodes: several daemons on one database and broker, each at work for tenants of its own.

Terms tell which nodes are alive, a table tells which node owns a tenant. The database checks both
in the transaction of each write, and nothing else decides: no node is above the others.
"""
