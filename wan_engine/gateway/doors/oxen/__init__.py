"""The Oxen door: `/api/ai/videos/generate`, `/api/ai/queue`, `/api/ai/models`, `/api/events`."""
