"""Inputs that once broke a promise, in the shortest form that was found; the suite tries each of them for ever."""

PAST_FINDS: tuple[tuple[str, str, bytes], ...] = ()  # target, what happened, input
