"""Kernels of the pages are forked from one process that has the packages imported.

A page costs a kernel, and a kernel two seconds of importing, which is more than most pages compute. Each kernel is
still a process of its own: pages share nothing but what was imported.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from importlib.metadata import EntryPoint
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

IMPORTED = [
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.core.completer",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",
    "pandas.io.formats.style",
    "xarray",
    "scipy.optimize",
    "scipy.sparse.linalg",
    "scipy.stats",
    "flashmm.model",
    "flashmm.plots",
    "flashmm.simulate",
]


def run(argv: list[str], environ: dict[str, str], folder: str | None) -> None:
    """A kernel, in the forked process."""
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415

    os.environ.update(environ)
    # A warning on a page names no temporary file.
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"
    if folder:
        os.chdir(folder)
    # Quiet: how to connect by hand is of no interest here. Errors of cells are messages, not the log.
    IPKernelApp.launch_instance(argv=[*argv, "--log-level=CRITICAL"])


class Forked:
    """A forked process under the names of subprocess.Popen."""

    stdin = stdout = stderr = None

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self.process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.process.is_alive() and self.pid:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class ForkingProvisioner(LocalProvisioner):
    """Starts kernels by forking."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:
        argv = cmd[cmd.index("ipykernel_launcher") + 1 :]
        context = multiprocessing.get_context("forkserver")
        process = context.Process(
            target=run, args=(argv, dict(options.get("env") or {}), options.get("cwd"))
        )
        process.start()
        self.process = Forked(process)
        self.pid = process.pid
        return self.connection_info


def setup(_app: Any) -> dict[str, Any]:
    """Make it the way in which kernels start, where processes can be forked."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        # Matplotlib asks for it when it is imported, which a kernel would set too late.
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
        factory = KernelProvisionerFactory.instance()
        name = "forking-provisioner"
        factory.provisioners[name] = EntryPoint(
            name, f"{__name__}:ForkingProvisioner", factory.GROUP_NAME
        )
        factory.default_provisioner_name = name
    return {"parallel_read_safe": True, "parallel_write_safe": True}
