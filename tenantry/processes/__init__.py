"""Several nodes of one machine as one service: a parent that has no work but theirs to look after.

It holds what there is one of, the control socket, the port and an embedded database; its children
are daemons like any other, nodes among nodes, which all listen on what they have from it.
"""
