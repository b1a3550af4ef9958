"""Several nodes of one machine as one service: a parent process that only supervises them.

The parent holds what the service has once: the control socket, the port and an embedded database.
Its children are ordinary daemons, nodes among nodes, which all listen on sockets inherited from it.
"""
