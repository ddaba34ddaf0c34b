"""Aid for tests without a GPU: Triton believes that it has a backend for the CPU, so that its interpreter can be used.

vLLM's second model runner asks for Triton. With TRITON_INTERPRET=1 its kernels run in Python, on any processor.
"""

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


class _Backend:
    driver = _Driver
    compiler = None


class _AfterImport(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        if name != "triton.backends":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None:
            self._own, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._own.create_module(spec)

    def exec_module(self, module):
        self._own.exec_module(module)
        module.backends.setdefault("cpu", _Backend)


if os.environ.get("TRITON_INTERPRET") == "1":
    sys.meta_path.insert(0, _AfterImport())
