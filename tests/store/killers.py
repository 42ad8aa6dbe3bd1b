"""Items that kill; a module of its own, since the processes that read import it, and this takes no torch."""

import os
from multiprocessing import parent_process


class Killers:
    """A source some items of which end the process that reads them, but not this one."""

    def __init__(self, items, numbers):
        self.items, self.numbers, self.digest, self.described = items, numbers, items.digest, items.described

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if index in self.numbers and parent_process() is not None:
            os._exit(9)
        return self.items[index]
