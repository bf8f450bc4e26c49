# SPDX-License-Identifier: LGPL-2.1-or-later
"""A thread that makes one request after the other until it is stopped, or one fails."""
import threading
import time

from harness import HANG


class GuestThread(threading.Thread):
    """What a request is, is the subclass's one_request()."""

    def __init__(self):
        super().__init__(daemon=True)
        self.stopped, self.failure, self.n_requests = threading.Event(), None, 0

    def run(self):
        try:
            while not self.stopped.is_set():
                self.one_request()
                self.n_requests += 1
        except BaseException as e:
            self.failure = e

    def go_on(self, n):
        """Until it has made `n` more requests."""
        until, deadline = self.n_requests + n, time.monotonic() + HANG
        while self.n_requests < until and not self.failure:
            assert time.monotonic() < deadline, "the guest hangs"
            time.sleep(0.001)

    def stop(self):
        """It has made its last request, and none has failed."""
        self.stopped.set()
        self.join(HANG)
        if self.failure:
            raise self.failure
