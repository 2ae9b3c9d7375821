"""Running Python code that nobody has read: in a folder of its own, without network, within limits.

`box.Sandbox` is the way in. `launcher` runs in the child process and imports nothing but the standard library and
`kernel`, so that it starts in milliseconds.
"""
