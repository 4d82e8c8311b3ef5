"""Jobs that end when a test says so."""


class Job:
    """A job that is over once `is_ended` is set; its function runs when the result is asked for."""

    def __init__(self, name, function):
        self.name = name
        self._function = function
        self.is_ended = False

    def is_done(self):
        return self.is_ended

    def result(self):
        assert self.is_ended
        return self._function()
