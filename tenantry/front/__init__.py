"""The front: a process of its own that serves HTTP on TCP.

It reads pages of messages from the database itself and hands every other request on to the daemon,
over sockets only the two of them have. So however much is read, and however clients behave,
the interpreter of the daemon has its time for messages.
"""
