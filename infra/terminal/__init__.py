"""What an operator looks at in a terminal: lag, the platform as it runs, the path of a request.

Reads topics without a group, and span files; changes nothing.
"""
