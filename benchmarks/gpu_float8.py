"""8-bit attention by cuDNN's own front end (package nvidia-cudnn-frontend), as an experiment.

Query, key and value as float8_e4m3fn, each with one scale for all or one a head; the key's mean
over the tokens is taken off before, which softmax does not see. Hopper and newer.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_MOST = 448.0  # the largest float8_e4m3fn


class Float8Attention:
    """Attention of one shape [1, tokens, heads, width], planned once."""

    def __init__(self, shape: tuple[int, int, int, int], *, per_head: bool) -> None:
        import cudnn

        _, tokens, heads, width = shape
        self._per_head, self._heads = per_head, heads
        planned = 1 if per_head else heads
        place = torch.device("cuda")
        self._q, self._k, self._v = (
            torch.empty(shape, device=place, dtype=torch.float8_e4m3fn) for _ in range(3)
        )
        self._output = torch.empty(shape, device=place, dtype=torch.bfloat16)
        self._scales = torch.ones(3, heads, device=place)
        self._one = torch.ones(1, 1, 1, 1, device=place)
        self._scale_p = torch.full((1, 1, 1, 1), 256.0, device=place)
        self._descale_p = 1 / self._scale_p
        self._amax = torch.zeros(2, 1, 1, 1, 1, device=place)
        self._handle = cudnn.create_handle()
        graph = self._graph = cudnn.pygraph(
            io_data_type=cudnn.data_type.FP8_E4M3,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self._handle,
        )
        sizes = [1, planned, tokens, width]
        strides = [tokens * heads * width, width, heads * width, 1]
        inputs = [
            graph.tensor(name=n, dim=sizes, stride=strides, data_type=cudnn.data_type.FP8_E4M3)
            for n in "qkv"
        ]
        scalars = [
            graph.tensor(
                name=n, dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=cudnn.data_type.FLOAT
            )
            for n in ("dq", "dk", "dv", "ds", "ss", "so")
        ]
        names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        output, _, amax_s, amax_o = graph.sdpa_fp8(
            q=inputs[0],
            k=inputs[1],
            v=inputs[2],
            **dict(zip(names, scalars, strict=True)),
            attn_scale=1 / math.sqrt(width),
            generate_stats=False,
        )
        output.set_output(True).set_dim(sizes).set_stride(strides)
        output.set_data_type(cudnn.data_type.BFLOAT16)
        for amax in (amax_s, amax_o):
            amax.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1])
            amax.set_data_type(cudnn.data_type.FLOAT)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        self._tensors = (*inputs, *scalars, output, amax_s, amax_o)
        self._workspace = torch.empty(
            graph.get_workspace_size(), device=place, dtype=torch.uint8
        )
        cudnn.set_stream(
            handle=self._handle, stream=torch.cuda.current_stream().cuda_stream
        )

    def __call__(self, query: Any, key: Any, value: Any) -> Any:
        self._quantize(0, query, self._q)
        self._quantize(1, key - key.mean(dim=1, keepdim=True), self._k)
        self._quantize(2, value, self._v)
        return self.attend()

    def _quantize(self, index: int, values: Any, into: Any) -> None:
        most = values.abs().amax(dim=(0, 1, 3)).float()
        if not self._per_head:
            most = most.max().expand_as(most)
        scale = (most / _MOST).clamp(min=1e-12)
        self._scales[index] = scale
        into.copy_(values / scale.view(1, 1, -1, 1))

    def attend(self) -> Any:
        for head in range(self._heads) if self._per_head else (slice(None),):
            part = slice(head, head + 1) if self._per_head else head
            first = head if self._per_head else 0
            views = (tensor[:, :, part].transpose(1, 2) for tensor in (self._q, self._k, self._v))
            scales = (self._scales[i, first].view(1, 1, 1, 1) for i in range(3))
            given = (
                *views,
                *scales,
                self._descale_p,
                self._scale_p,
                self._one,
                self._output[:, :, part].transpose(1, 2),
                self._amax[0],
                self._amax[1],
            )
            self._graph.execute(
                dict(zip(self._tensors, given, strict=True)), self._workspace, handle=self._handle
            )
        return self._output
