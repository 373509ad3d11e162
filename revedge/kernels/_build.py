"""Build step only: compiles the kernels with OpenMP, or without it, or not at all."""

import os
import sysconfig
import warnings

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, LinkError, PlatformError

_FAILURES = (CompileError, ExecError, LinkError, PlatformError, OSError)
# No contraction to fused multiply-add: the results must be those of the PyTorch reference.
_FLAGS = ["-O3", "-std=c99", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-g0"]


class BuildKernels(build_ext):
    """Tries OpenMP first; ``REVEDGE_REQUIRE_NATIVE=1`` makes a failed build an error."""

    def get_ext_filename(self, fullname: str) -> str:
        # ctypes loads the library, so its name carries no Python ABI tag.
        name = super().get_ext_filename(fullname)
        return name.removesuffix(sysconfig.get_config_var("EXT_SUFFIX")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return list(ext.export_symbols or [])  # there is no PyInit_ to export

    def build_extension(self, ext: Extension) -> None:
        reason: Exception | None = None
        # The arena is preloaded: it must not bring an OpenMP runtime of its own before torch's.
        attempts = [["-pthread"]] if ext.name.endswith("arena") else [["-fopenmp"], []]
        for threads in attempts:
            ext.extra_compile_args, ext.extra_link_args = _FLAGS + threads, threads
            try:
                super().build_extension(ext)
                return
            except _FAILURES as error:
                reason = error
        if os.environ.get("REVEDGE_REQUIRE_NATIVE") == "1":
            # Not one of the errors that `optional = true` swallows.
            raise RuntimeError(
                "REVEDGE_REQUIRE_NATIVE=1, but the C kernels did not compile"
            ) from reason
        warnings.warn(f"C kernels not built ({reason}); PyTorch kernels will be used", stacklevel=1)
