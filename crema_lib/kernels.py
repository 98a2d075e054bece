"""Kernels that start warm: each is a fork of one process that has already loaded what every chapter loads.

Loading torch, timm and their company takes a core several seconds, and a book has many chapters. `multiprocessing`'s fork server loads
once; a kernel is then there at once, with a memory of its own. Names stay unbound until a chapter imports them, so it runs as it would
from a cold start.
"""

import multiprocessing
import os
import tempfile
from multiprocessing import forkserver

from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

LOADED = ("torch", "timm", "accelerate", "sklearn.linear_model", "seaborn", "ipykernel.kernelapp", "crema_lib.sit", "crema_lib.plots")


class _Forked:
    """A forked kernel with the face of a `subprocess.Popen`, as far as the provisioner looks at it."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid = process, process.pid
        self.kill, self.terminate = process.kill, process.terminate

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.poll()

    def send_signal(self, number):
        os.kill(self.pid, number)


class _Provisioner(LocalProvisioner):
    async def launch_kernel(self, cmd, cwd=None, env=None, **kwargs):
        if "ipykernel_launcher" not in cmd:  # a kernel of another kind
            return await super().launch_kernel(cmd, cwd=cwd, env=env, **kwargs)
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        process = multiprocessing.get_context("forkserver").Process(target=_serve, args=(arguments, cwd, env))
        process.start()
        self.process, self.pid = _Forked(process), process.pid
        return self.connection_info


class WarmKernelManager(AsyncKernelManager):
    """A kernel manager of Jupyter, for Python kernels of this environment. See `warm_up`.

    It talks through sockets in a folder of its own. Numbered ports are picked first and taken later, and in between another kernel that
    starts, or any other program, may take them.
    """

    def __init__(self, **options):
        self._sockets = tempfile.TemporaryDirectory(prefix="crema-")  # gone with the manager
        super().__init__(**options, transport="ipc", ip=os.path.join(self._sockets.name, "kernel"))

    async def _async_pre_start_kernel(self, **kw):
        self.provisioner = self.provisioner or _Provisioner(kernel_id=self.kernel_id or "", kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**kw)


def warm_up(threads):
    """Start the fork server.

    Args:
        threads: of each kernel, where OMP_NUM_THREADS does not say; read once, when torch is loaded.

    Returns:
        The class of kernel manager to use, or None where the system cannot fork.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    told = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        forkserver.set_forkserver_preload(list(LOADED))
        forkserver.ensure_running()
    finally:
        if told is None:
            del os.environ["OMP_NUM_THREADS"]
    return WarmKernelManager


def stop():
    """Ask the kernels that run to end. One that trains saves first (`engine.fit` raises `Stopped`), any other dies at once."""
    for process in multiprocessing.active_children():
        process.terminate()


def _serve(arguments, cwd, environment):
    """What a forked process does: be the kernel, and end with the process that it was forked from."""
    os.setsid()
    os.chdir(cwd or os.getcwd())
    os.environ.clear()
    os.environ.update(environment or {}, JPY_PARENT_PID=str(os.getppid()))
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=arguments)
