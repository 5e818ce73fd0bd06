"""The OpenAI-shaped door: `/v1/videos`, as OpenAI's client, vLLM-Omni and LiteLLM speak it."""
