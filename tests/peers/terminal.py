"""Runs a program on a terminal of its own and answers its questions as a person would.

    python terminal.py QUESTION=ANSWER ... -- PROGRAM ARGUMENT ...

Each answer is typed when its question stands there and the terminal shows no typing any more, which comes a moment
later; one that shows it for ten seconds fails. Prints all that the terminal showed, and ends as the program does.
"""

import os
import pty
import sys
import termios
import time

split = sys.argv.index("--")
answers = [pair.split("=", 1) for pair in sys.argv[1:split]]
program = sys.argv[split + 1 :]

child, terminal = pty.fork()
if child == 0:
    os.execvp(program[0], program)


def wait_until_unseen():
    deadline = time.monotonic() + 10
    while termios.tcgetattr(terminal)[3] & termios.ECHO:
        if time.monotonic() > deadline:
            sys.exit("what is typed would be shown")
        time.sleep(0.01)


shown = b""
asked_from = 0
while True:
    try:
        piece = os.read(terminal, 1024)
    except OSError:  # Linux says so when the program has ended.
        break
    if not piece:
        break
    shown += piece
    if answers and answers[0][0].encode() in shown[asked_from:]:
        asked_from = len(shown)
        wait_until_unseen()
        os.write(terminal, answers.pop(0)[1].encode() + b"\n")
_, status = os.waitpid(child, 0)
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(status) if not answers else 97)
