"""For all tests."""

import signal

# A shell that starts a test run in the background has it ignore SIGINT, and what is ignored is
# inherited: the programs that tests interrupt would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
