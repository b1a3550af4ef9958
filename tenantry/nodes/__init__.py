"""Nodes: several daemons on one database and broker, each at work for tenants of its own.

Who is alive is told by terms, whose a tenant is by a table; both are checked by the database in the
transaction of each write. Nothing else decides: no node is above the others.
"""
