"""The front: a process of its own that serves HTTP on TCP.

It reads and publishes messages itself, and hands every other request on to the daemon, over sockets
that only these two processes have. So however much is read, and however clients behave, the
daemon's interpreter has its time for messages.
"""
