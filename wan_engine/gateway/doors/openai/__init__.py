"""The OpenAI-compatible door: `/v1/videos`, for the clients of OpenAI, vLLM-Omni and LiteLLM."""
