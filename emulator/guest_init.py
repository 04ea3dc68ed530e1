"""The emulated machine's first process: runs commands with the console as their output, and ends.

Its last line is `emulator: exit N`, N the status of the first command that failed, or 0: whoever
reads the console takes that for the end. Uses only the standard library and what the kernel offers.
"""

import ctypes
import json
import os
import subprocess
import termios
import traceback

POWER_OFF = 0x4321FEDC


def mount(kind, folder):
    os.makedirs(folder, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(kind.encode(), folder.encode(), kind.encode(), 0, None) != 0:
        raise OSError(ctypes.get_errno(), f"mounting {kind} on {folder}")


def main():
    for kind, folder in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, folder)
    mount("tmpfs", "/dev/shm")
    with open("/emulator.json", encoding="utf-8") as f:
        job = json.load(f)
    console = os.open("/dev/console", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(console, fd)
    os.environ.clear()
    os.environ.update(job["environment"])
    for command in job["commands"]:
        status = subprocess.run(command, cwd=job["folder"], check=False).returncode
        if status != 0:
            break
    return status


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
    print(f"\nemulator: exit {code}", flush=True)
    termios.tcdrain(1)  # the serial port is slow, and powering off does not wait for it
    ctypes.CDLL(None).reboot(POWER_OFF)
