"""Jupyter kernels forked from a process that has everything imported, which is most of a notebook."""

import multiprocessing
import os
import signal
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.manager import AsyncKernelManager

IMPORTED = ["lightning_vlm.run", "sklearn.datasets", "ipykernel.kernelapp", "tests.support.forked_kernel"]
"""What the process has imported that kernels are forked from. None of it may begin a thread."""


class ForkedKernelManager(AsyncKernelManager):
    """Starts the ordinary kernel, but in a fork."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
        provisioner: Any = self.provisioner
        provisioner.process = ForkedProcess(self.connection_file, options["cwd"])
        provisioner.pid = provisioner.process.pid
        self._reconcile_connection_info(provisioner.connection_info)


class ForkedProcess:
    """A kernel's process, with those methods of a `Popen` that the kernel manager calls."""

    stdin = stdout = stderr = None

    def __init__(self, connection_file: str, folder: str) -> None:
        # pyplot is imported before the kernel is there that would ask for pictures in the notebook.
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self._process = context.Process(target=_run_kernel, args=(connection_file, folder))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run_kernel(connection_file: str, folder: str) -> None:
    os.chdir(folder)
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # it ends with the process that it was forked from
    IPKernelApp.launch_instance(argv=["-f", connection_file, "--log-level=ERROR", parent])
