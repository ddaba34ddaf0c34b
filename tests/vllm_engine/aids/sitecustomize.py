"""Aids for tests without a GPU, in every process of vLLM.

vLLM's second model runner asks for Triton. With TRITON_INTERPRET=1 its kernels run in Python, on any processor, once
Triton believes that it has a backend for the CPU. With TEST_EXPERT_PARALLEL=1 the ranks of expert parallelism hand
their CPU kernel, which knows its own experts alone, ids of these and weight 0 for all others.
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


def _with_backend(module):
    module.backends.setdefault("cpu", _Backend)


def _with_expert_map(module):
    own = module.RoutedExperts.forward_modular

    def forward_modular(self, x, topk_weights, topk_ids, *values, **more):
        if self.expert_map is not None:
            here = self.expert_map[topk_ids.long()]  # -1: an expert of another rank
            topk_weights = topk_weights * (here >= 0)
            topk_ids = here.clamp_min(0).to(topk_ids.dtype)
        return own(self, x, topk_weights, topk_ids, *values, **more)

    module.RoutedExperts.forward_modular = forward_modular


class _AfterImport(MetaPathFinder, Loader):
    def __init__(self, name, then):
        self._name, self._then = name, then

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
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
        self._then(module)


if os.environ.get("TRITON_INTERPRET") == "1":
    sys.meta_path.insert(0, _AfterImport("triton.backends", _with_backend))
if os.environ.get("TEST_EXPERT_PARALLEL") == "1":
    sys.meta_path.insert(0, _AfterImport("vllm.model_executor.layers.fused_moe.routed_experts", _with_expert_map))
